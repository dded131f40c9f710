// Arrays of structures: mixed members with padding, member functions, references, a union and bit fields.
struct Flags {
    unsigned int frozen : 1;
    unsigned int hits : 7;
    unsigned int rest : 24;
};
union Word {
    Flags flags;
    unsigned int bits;
};
struct Particle {
    double x, v;
    float mass;
    unsigned char kind;
    Word state;
    __device__ void step(double dt) {
        x += v * dt;
        if (x < 0.0 || x > 1.0) {
            v = -v;
            ++state.flags.hits;
        }
    }
};

extern "C" __global__ void advance(Particle* particles, double dt, int steps, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Particle& p = particles[i];
    if (p.state.flags.frozen) return;
    for (int s = 0; s < steps; ++s) p.step(dt);
    p.mass *= p.kind == 2 ? 0.5f : 2.0f;
}
