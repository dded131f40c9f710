/* A stand-in for libnvidia-ml.so.1, for tests on machines without a GPU. There is no card behind it.
 *
 * It is marked: it exports coppermesh_simulated_nvml, and its driver version ends in "-simulated".
 *
 * What it shows stands in profile.txt beside the library, which is read again at every nvmlInit:
 *
 *     driver=550.54.15
 *     gpu                          begins a card; its lines follow
 *     name=...   uuid=...   memory=TOTAL USED   capability=MAJOR MINOR
 *     energy=START STEP            millijoules, STEP more at each reading; STEP may be negative
 *     mig                          the card is partitioned; each instance follows
 *     instance                     begins an instance: name, uuid, memory
 *     fault=FUNCTION NUMBER        FUNCTION (without "nvml") answers NUMBER; on the driver's lines: for all cards
 *     hang=FUNCTION                FUNCTION does not return
 *
 * What a card does meanwhile stands in live.txt beside the library, which is read again at every question, so that a
 * test can change it under a running agent. CARD counts from 0 in the profile's order:
 *
 *     temperature=CARD CELSIUS     power=CARD MILLIWATTS     utilisation=CARD PERCENT
 *     compute=CARD PID BYTES       graphics=CARD PID BYTES   a program on the card; -1 bytes: not known
 *
 * A card's field that is not given is answered with NVML_ERROR_NOT_SUPPORTED. Numbers of errors are NVML's own.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MOST_CARDS = 16, MOST_FAULTS = 32, WORD = 96 };

struct card {
    char name[WORD], uuid[WORD];
    unsigned long long total, used, energy;
    long long energy_step;
    int has_memory, has_energy, major, minor, partitioned, parent;
    struct { char function[WORD]; int answer; } faults[MOST_FAULTS];
    int fault_count;
};

int coppermesh_simulated_nvml = 1;

static struct card machine; /* its driver version is in `name` */
static struct card cards[MOST_CARDS];
static int card_count, initialised;

enum { HANG = -1 };

static void read_line(struct card *card, char *line)
{
    char word[WORD];
    int number;
    if (sscanf(line, "memory=%llu %llu", &card->total, &card->used) == 2) card->has_memory = 1;
    else if (sscanf(line, "energy=%llu %lld", &card->energy, &card->energy_step) == 2) card->has_energy = 1;
    else if (sscanf(line, "capability=%d %d", &card->major, &card->minor) == 2) return;
    else if (!strcmp(line, "mig")) card->partitioned = 1;
    else if (!strncmp(line, "name=", 5)) snprintf(card->name, WORD, "%.95s", line + 5);
    else if (!strncmp(line, "uuid=", 5)) snprintf(card->uuid, WORD, "%.95s", line + 5);
    else if (!strncmp(line, "driver=", 7)) snprintf(card->name, WORD, "%.95s", line + 7);
    else if (card->fault_count < MOST_FAULTS && sscanf(line, "fault=%95s %d", word, &number) == 2) {
        snprintf(card->faults[card->fault_count].function, WORD, "%s", word);
        card->faults[card->fault_count++].answer = number;
    } else if (card->fault_count < MOST_FAULTS && sscanf(line, "hang=%95s", word) == 1) {
        snprintf(card->faults[card->fault_count].function, WORD, "%s", word);
        card->faults[card->fault_count++].answer = HANG;
    }
}

/* Open a file that lies beside this library. */
static FILE *open_beside(const char *name)
{
    char path[4096] = "";
    Dl_info self;
    if (dladdr(&coppermesh_simulated_nvml, &self) && strlen(self.dli_fname) < sizeof path - 16) {
        strcpy(path, self.dli_fname);
        strcpy(strrchr(path, '/') ? strrchr(path, '/') + 1 : path, name);
    }
    return fopen(path, "r");
}

static void read_profile(void)
{
    FILE *file = open_beside("profile.txt");
    struct card *card = &machine;
    char line[256];
    int whole = -1;
    memset(&machine, 0, sizeof machine);
    memset(cards, 0, sizeof cards);
    card_count = 0;
    snprintf(machine.name, WORD, "0.0");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if ((!strcmp(line, "gpu") || !strcmp(line, "instance")) && card_count < MOST_CARDS) {
            card = &cards[card_count];
            card->major = card->minor = -1;
            card->parent = line[0] == 'i' ? whole : -1;
            if (line[0] == 'g') whole = card_count;
            card_count++;
        } else
            read_line(card, line);
    }
    if (file) fclose(file);
}

/* What `function` is to answer for this card, before it does anything else. */
static int answer_for(const struct card *card, const char *function)
{
    const struct card *places[2] = {card, &machine};
    for (int place = 0; place < 2; place++)
        for (int i = 0; places[place] && i < places[place]->fault_count; i++)
            if (!strcmp(places[place]->faults[i].function, function)) {
                if (places[place]->faults[i].answer != HANG) return places[place]->faults[i].answer;
                for (;;) pause();
            }
    return initialised ? OK : UNINITIALIZED;
}

#define BEGIN(card, function) \
    do { int answer = answer_for(card, function); if (answer != OK) return answer; } while (0)

static int give_text(const char *text, char *out, unsigned length)
{
    if (!*text) return NOT_SUPPORTED;
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return OK;
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    read_profile();
    initialised++;
    int answer = answer_for(NULL, "InitWithFlags");
    if (answer != OK) initialised--;
    return answer;
}

int nvmlShutdown(void)
{
    BEGIN(NULL, "Shutdown");
    initialised--;
    return OK;
}

const char *nvmlErrorString(int number)
{
    static char text[40];
    snprintf(text, sizeof text, "simulated NVML error %d", number);
    return text;
}

int nvmlSystemGetDriverVersion(char *out, unsigned length)
{
    char text[WORD + 16];
    BEGIN(NULL, "SystemGetDriverVersion");
    snprintf(text, sizeof text, "%s-simulated", machine.name);
    return give_text(text, out, length);
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    BEGIN(NULL, "DeviceGetCount");
    *count = 0;
    for (int i = 0; i < card_count; i++) *count += cards[i].parent < 0;
    return OK;
}

static int find(int parent, unsigned index, struct card **out)
{
    for (int i = 0; i < card_count; i++)
        if (cards[i].parent == parent && index-- == 0) {
            *out = &cards[i];
            return OK;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct card **out)
{
    struct card *card = NULL;
    int found = find(-1, index, &card);
    BEGIN(card, "DeviceGetHandleByIndex");
    *out = card;
    return found == OK ? OK : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct card **out)
{
    BEGIN(NULL, "DeviceGetHandleByUUID");
    for (int i = 0; i < card_count; i++)
        if (!strcmp(cards[i].uuid, uuid)) {
            *out = &cards[i];
            return OK;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetName(struct card *card, char *out, unsigned length)
{
    BEGIN(card, "DeviceGetName");
    return give_text(card->name, out, length);
}

int nvmlDeviceGetUUID(struct card *card, char *out, unsigned length)
{
    BEGIN(card, "DeviceGetUUID");
    return give_text(card->uuid, out, length);
}

int nvmlDeviceGetMemoryInfo(struct card *card, unsigned long long *out)
{
    BEGIN(card, "DeviceGetMemoryInfo");
    if (!card->has_memory) return NOT_SUPPORTED;
    out[0] = card->total;
    out[1] = card->total - card->used;
    out[2] = card->used;
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(struct card *card, int *major, int *minor)
{
    BEGIN(card, "DeviceGetCudaComputeCapability");
    if (card->major < 0) return NOT_SUPPORTED;
    *major = card->major;
    *minor = card->minor;
    return OK;
}

int nvmlDeviceGetTotalEnergyConsumption(struct card *card, unsigned long long *out)
{
    BEGIN(card, "DeviceGetTotalEnergyConsumption");
    if (!card->has_energy) return NOT_SUPPORTED;
    *out = card->energy;
    card->energy += card->energy_step;
    return OK;
}

int nvmlDeviceGetMigMode(struct card *card, unsigned *current, unsigned *pending)
{
    BEGIN(card, "DeviceGetMigMode");
    *current = *pending = card->partitioned;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(struct card *card, unsigned *count)
{
    BEGIN(card, "DeviceGetMaxMigDeviceCount");
    *count = card->partitioned ? 7 : 0;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct card *card, unsigned index, struct card **out)
{
    BEGIN(card, "DeviceGetMigDeviceHandleByIndex");
    return find((int)(card - cards), index, out);
}

/* What a card does meanwhile: live.txt. */

/* The number behind `word` for this card. */
static int live_number(const struct card *card, const char *word, unsigned *out)
{
    FILE *file = open_beside("live.txt");
    char line[256], format[64];
    int number, found = NOT_SUPPORTED;
    unsigned value;
    snprintf(format, sizeof format, "%s=%%d %%u", word);
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, format, &number, &value) == 2 && number == (int)(card - cards)) {
            *out = value;
            found = OK;
        }
    if (file) fclose(file);
    return found;
}

struct process { unsigned pid; unsigned long long memory; unsigned instance, compute; }; /* nvmlProcessInfo_v2_t */

/* The programs of one kind: how many there are in *count, and as many as there is room for in `out`. */
static int live_processes(const struct card *card, const char *word, unsigned *count, struct process *out)
{
    FILE *file = open_beside("live.txt");
    char line[256], format[64];
    unsigned room = out ? *count : 0, found = 0, pid;
    int number;
    long long bytes;
    snprintf(format, sizeof format, "%s=%%d %%u %%lld", word);
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, format, &number, &pid, &bytes) != 3 || number != (int)(card - cards)) continue;
        if (found < room) out[found] = (struct process){pid, (unsigned long long)bytes, ~0u, ~0u};
        found++;
    }
    if (file) fclose(file);
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}

int nvmlDeviceGetTemperature(struct card *card, int sensor, unsigned *out)
{
    (void)sensor;
    BEGIN(card, "DeviceGetTemperature");
    return live_number(card, "temperature", out);
}

int nvmlDeviceGetPowerUsage(struct card *card, unsigned *out)
{
    BEGIN(card, "DeviceGetPowerUsage");
    return live_number(card, "power", out);
}

int nvmlDeviceGetUtilizationRates(struct card *card, unsigned *out)
{
    BEGIN(card, "DeviceGetUtilizationRates");
    out[1] = 0;
    return live_number(card, "utilisation", out);
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct card *card, unsigned *count, struct process *out)
{
    BEGIN(card, "DeviceGetComputeRunningProcesses");
    return live_processes(card, "compute", count, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct card *card, unsigned *count, struct process *out)
{
    BEGIN(card, "DeviceGetGraphicsRunningProcesses");
    return live_processes(card, "graphics", count, out);
}
