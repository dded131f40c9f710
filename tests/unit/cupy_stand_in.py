"""A stand-in for CuPy, on NumPy. It says nothing about CUDA: it shows only what our runtime asks of CuPy, and when.

It is strict where CuPy is. NumPy arrays are taken by `array` and `asarray` alone, and arrays come back to the host by
`asnumpy` alone. Every call on arrays must happen on the device, on a non-blocking stream. The pool counts bytes and
keeps to its limit. A kernel is a Python function that the test registers under the kernel's name; what goes wrong in
one shows when the stream is waited for, as on a GPU, and an error of CUDA's sticky kind stays.
"""

import types
import weakref

import numpy as np

STICKY = {
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    214: "cudaErrorECCUncorrectable",
}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status):
        self.status = status
        super().__init__(STICKY.get(status, f"cudaError {status}"))


class OutOfMemoryError(MemoryError):
    def __init__(self, size, total, limit=0):
        self._size, self._total, self._limit = size, total, limit
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class CompileException(Exception):
    pass


class Pool:
    def __init__(self, gpu):
        self.gpu, self.limit, self.used, self.free, self.peak = gpu, 0, 0, 0, 0

    def allocate(self, size):
        if self.used + self.free + size > min(self.limit or self.gpu.memory, self.gpu.memory):
            self.free_all_blocks()
            if self.used + size > min(self.limit or self.gpu.memory, self.gpu.memory):
                raise OutOfMemoryError(size, self.used, self.limit)
        self.free -= min(self.free, size)
        self.used += size
        self.peak = max(self.peak, self.used)

    def release(self, size):
        self.used -= size
        self.free += size

    def set_limit(self, size=None):
        self.gpu.log.append(f"limit {size}")
        self.limit = size

    def free_bytes(self):
        return self.free

    def free_all_blocks(self):
        self.gpu.log.append("free all blocks")
        self.free = 0


class Array(np.ndarray):
    """Device memory. What NumPy's operators make of it is device memory too."""

    gpu = None

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        self.gpu.need_stream(ufunc.__name__)
        self.gpu.need_device_arrays(inputs)
        plain = [_plain(x) for x in inputs]
        if out is not None:
            options["out"] = tuple(_plain(x) for x in out)
        result = getattr(ufunc, method)(*plain, **options)
        if out is not None:
            return out[0]
        return self.gpu.wrap(result, inputs)

    def __setitem__(self, key, value):
        if isinstance(key, tuple) and key and isinstance(key[-1], Array):  # CuPy wraps an index out of range
            key = (*key[:-1], _plain(key[-1]) % self.shape[len(key) - 1])
        self.view(np.ndarray)[key] = _plain(value)

    def get(self):
        return np.array(_plain(self))

    @property
    def data(self):
        return MemoryPointer(_plain(self).reshape(-1).view(np.uint8), 0)


class MemoryPointer:
    def __init__(self, memory, offset):
        self.octets = (memory.octets if isinstance(memory, UnownedMemory) else memory)[offset:]

    def copy_from_device_async(self, source, size):
        self.octets[:size] = source.octets[:size]


class UnownedMemory:
    def __init__(self, address, size, owner):
        self.octets = owner.variables[address]


def _plain(x):
    return x.view(np.ndarray) if isinstance(x, Array) else x


class StandInGpu:
    """One device. `modules()` are the stand-ins for `cupy` and `cupyx`."""

    def __init__(self, memory=1 << 30):
        self.memory = memory
        self.log = []
        self.kernels = {"coppermesh_index_guard": _index_guard}
        self.variables = {}
        self.pool = Pool(self)
        self.on_device = self.stream = None
        self.pending = self.poison = None
        self.limits = {
            "MaxThreadsPerBlock": 1024,
            "MaxGridDimX": 2**31 - 1,
            "MaxGridDimY": 65535,
            "MaxGridDimZ": 65535,
            "MaxBlockDimX": 1024,
            "MaxBlockDimY": 1024,
            "MaxBlockDimZ": 64,
            "MaxSharedMemoryPerBlock": 48 << 10,
            "MaxSharedMemoryPerBlockOptin": 99 << 10,
        }
        self.static_shared = 0
        self.max_threads = 1024
        self.array_type = type("ndarray", (Array,), {"gpu": self})

    # What every call is held to

    def need_stream(self, what):
        if self.poison is not None:
            raise CUDARuntimeError(self.poison)
        assert self.on_device is not None, f"{what} outside the device"
        assert self.stream is not None, f"{what} outside a stream"
        assert self.stream.non_blocking, f"{what} on a blocking stream"

    def need_device_arrays(self, values):
        for value in values:
            if isinstance(value, np.ndarray) and not isinstance(value, Array):
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")

    def fault(self, status):
        """A kernel's access went wrong: the next wait tells."""
        self.pending = status

    def wait(self):
        if self.pending is not None:
            self.poison = self.pending
        if self.poison is not None:
            raise CUDARuntimeError(self.poison)

    # Memory

    def fresh(self, result):
        result = np.asarray(result)
        self.pool.allocate(result.nbytes)
        array = np.ndarray.__new__(self.array_type, result.shape, result.dtype)
        array[...] = result
        weakref.finalize(array, self.pool.release, result.nbytes)
        return array

    def wrap(self, result, inputs):
        if isinstance(result, tuple):
            return tuple(self.wrap(one, inputs) for one in result)
        if isinstance(result, (np.ndarray, np.generic)):
            for one in inputs:
                if (
                    isinstance(one, Array)
                    and isinstance(result, np.ndarray)
                    and np.shares_memory(one, result)
                ):
                    return one if result is one else result.view(self.array_type)
            return self.fresh(result)
        return result

    # The modules

    def function(self, function, name):
        def call(*arguments, **options):
            self.need_stream(name)
            flat = [*arguments, *options.values()]
            flat += [x for value in flat if isinstance(value, (list, tuple)) for x in value]
            if name not in ("array", "asarray"):
                self.need_device_arrays(flat)
            elif isinstance(arguments[0], Array) and not options.get("copy"):
                return arguments[0]
            plain = [[_plain(x) for x in a] if isinstance(a, list) else _plain(a) for a in arguments]
            return self.wrap(function(*plain, **{k: _plain(v) for k, v in options.items()}), flat)

        return call

    def namespace(self, source, name):
        module = types.ModuleType(name)

        def find(attribute):
            value = getattr(source, attribute)
            if isinstance(value, type) or not callable(value):
                return self.namespace(value, name) if isinstance(value, types.ModuleType) else value
            return _Function(self, value, attribute)

        module.__getattr__ = find
        return module

    def modules(self):
        cupy = self.namespace(np, "cupy")
        cupy.__version__ = "0.stand-in"
        cupy.ndarray = self.array_type
        cupy.asnumpy = self.asnumpy
        # CuPy's sorts are stable.
        cupy.argsort = self.function(lambda a, axis: np.argsort(a, axis=axis, kind="stable"), "argsort")
        # CuPy wraps an index that is out of range.
        cupy.take = self.function(lambda a, i, axis: np.take(a, i, axis=axis, mode="wrap"), "take")
        cupy.get_default_memory_pool = lambda: self.pool
        cupy.get_default_pinned_memory_pool = lambda: types.SimpleNamespace(free_all_blocks=lambda: None)
        cupy.RawKernel = lambda *a, **k: RawKernel(self, *a, **k)
        cupy.RawModule = lambda **k: RawModule(self, **k)
        cupy.ElementwiseKernel = lambda *a, **k: Elementwise(self, *a, **k)
        cupy.ReductionKernel = lambda *a, **k: Elementwise(self, *a[:3], a[6], **k)
        cupy.cuda = self.cuda()
        cupy._core = types.SimpleNamespace(
            core=types.SimpleNamespace(assemble_cupy_compiler_options=lambda options: ("-Iheaders", *options))
        )
        return {
            "cupy": cupy,
            "cupyx": types.SimpleNamespace(errstate=lambda **state: Entered(self, f"errstate {state}")),
        }

    def cuda(self):
        gpu = self
        attributes = {f"CU_FUNC_ATTRIBUTE_{name}": name for name in FUNCTION_ATTRIBUTES}
        return types.SimpleNamespace(
            Device=lambda number: Device(gpu, number),
            Stream=lambda non_blocking=False: Stream(gpu, non_blocking),
            Event=lambda: Event(gpu),
            get_elapsed_time=lambda begin, end: end.at - begin.at,
            runtime=types.SimpleNamespace(
                runtimeGetVersion=lambda: 13020,
                driverGetVersion=lambda: 13000,
                getDeviceProperties=lambda number: {"name": b"Stand-in"},
            ),
            nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 5)),
            compiler=types.SimpleNamespace(
                CompileException=CompileException, compile_using_nvrtc=gpu.compile
            ),
            function=types.SimpleNamespace(Module=lambda: Module(gpu)),
            driver=types.SimpleNamespace(
                **attributes,
                funcGetAttribute=lambda name, pointer: gpu.attribute(name),
                funcSetAttribute=lambda pointer, name, value: gpu.log.append(f"set {name} {value}"),
            ),
            UnownedMemory=UnownedMemory,
            MemoryPointer=MemoryPointer,
        )

    def attribute(self, name):
        return {
            "MAX_THREADS_PER_BLOCK": self.max_threads,
            "SHARED_SIZE_BYTES": self.static_shared,
            "MAX_DYNAMIC_SHARED_SIZE_BYTES": (48 << 10) - self.static_shared,
        }[name]

    def compile(self, source, options, filename, name_expressions, cache_in_memory):
        check_compiles(source)
        assert cache_in_memory, "a worker has no place for files"
        self.log.append(f"compile {options}")
        return source.encode(), {name: f"_Z{name}" for name in name_expressions or ()}

    def asnumpy(self, array):
        self.need_stream("asnumpy")
        assert isinstance(array, Array), type(array)
        self.wait()
        return array.get()


FUNCTION_ATTRIBUTES = ("MAX_THREADS_PER_BLOCK", "SHARED_SIZE_BYTES", "MAX_DYNAMIC_SHARED_SIZE_BYTES")


class _Function:
    """A function of the library: `add(x, y)`, `add.at(...)`."""

    def __init__(self, gpu, function, name):
        self.call, self.function, self.gpu = gpu.function(function, name), function, gpu

    def __call__(self, *arguments, **options):
        return self.call(*arguments, **options)

    def at(self, target, index, values):
        self.gpu.need_stream("at")
        if target.dtype.name not in ("int32", "uint32", "uint64", "float32", "float64"):
            raise TypeError("cupy.add.at only supports int32, float32, float64, uint32, uint64 as data type")
        plain = tuple(_plain(x) for x in index)
        self.function.at(_plain(target), plain, _plain(values))


class Entered:
    def __init__(self, gpu, word):
        self.gpu, self.word = gpu, word

    def __enter__(self):
        self.gpu.log.append(self.word)

    def __exit__(self, *_):
        pass


class Device:
    def __init__(self, gpu, number):
        self.gpu, self.id = gpu, number
        self.compute_capability = "75"

    @property
    def attributes(self):
        return self.gpu.limits

    def __enter__(self):
        if self.gpu.memory == 0:
            raise CUDARuntimeError(35)
        self.before, self.gpu.on_device = self.gpu.on_device, self
        return self

    def __exit__(self, *_):
        self.gpu.on_device = self.before


class Stream:
    def __init__(self, gpu, non_blocking):
        self.gpu, self.non_blocking = gpu, non_blocking

    def __enter__(self):
        self.before, self.gpu.stream = self.gpu.stream, self
        return self

    def __exit__(self, *_):
        self.gpu.stream = self.before

    def synchronize(self):
        self.gpu.log.append("wait")
        self.gpu.wait()


class Event:
    def __init__(self, gpu):
        self.gpu, self.at = gpu, None

    def record(self):
        self.gpu.need_stream("record")
        self.gpu.log.append("event")
        self.at = len(self.gpu.log) / 1000

    def synchronize(self):
        self.gpu.wait()


class RawKernel:
    def __init__(self, gpu, code, name, options=()):
        check_compiles(code)
        self.gpu, self.code, self.name, self.options = gpu, code, name, options
        self.max_threads_per_block = gpu.max_threads
        self.shared_size_bytes = gpu.static_shared
        self.dynamic = (48 << 10) - gpu.static_shared
        gpu.log.append(f"compile {name}")

    @property
    def max_dynamic_shared_size_bytes(self):
        return self.dynamic

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        self.gpu.log.append(f"opt in {size}")
        self.dynamic = size

    def __call__(self, grid, block, arguments, shared_mem=0):
        self.gpu.need_stream(self.name)
        assert isinstance(arguments, tuple), arguments
        for x in arguments:
            assert isinstance(x, (Array, np.generic)) or x.size == 1, "a NumPy array is no kernel argument"
        assert shared_mem <= self.dynamic, "more shared memory than was asked for"
        self.gpu.kernels[self.name](grid, block, [_plain(x) for x in arguments], shared_mem)


class RawModule:
    def __init__(self, gpu, code, options, name_expressions):
        self.gpu, self.code, self.options, self.names = gpu, code, options, name_expressions

    def get_function(self, name):
        return RawKernel(self.gpu, self.code, name, self.options)


class Module:
    """Code loaded once: variables of its own, as `gpu.variables` says they begin."""

    def __init__(self, gpu):
        self.gpu, self.ptr = gpu, 0

    def load(self, code):
        self.gpu.log.append("load")
        self.variables = {
            name: np.frombuffer(data, np.uint8).copy() for name, data in self.gpu.variables.items()
        }

    def get_function(self, name):
        kernel = RawKernel(self.gpu, "", name)
        return Loaded(self, kernel)


class Loaded:
    def __init__(self, module, kernel):
        self.module, self.kernel, self.ptr = module, kernel, id(kernel)

    def __call__(self, grid, block, arguments, shared_mem=0):
        run = self.module.gpu.kernels[self.kernel.name]
        run(grid, block, [_plain(x) for x in arguments], shared_mem, self.module.variables)


class Elementwise:
    """Also stands for ReductionKernel: what it does is the test's function under its name."""

    def __init__(self, gpu, in_params, out_params, operation, name, **options):
        check_compiles(operation)
        self.gpu, self.name, self.options = gpu, name, options
        self.texts = (in_params, out_params, operation)

    def __call__(self, *arguments, **options):
        self.gpu.need_stream(self.name)
        self.gpu.need_device_arrays(arguments)
        result = self.gpu.kernels[self.name](*[_plain(x) for x in arguments], **options)
        return None if result is None else self.gpu.fresh(result)


def _index_guard(indices, length):
    return np.array(((indices < -length) | (indices >= length)).any())


def check_compiles(source):
    if "#error" in source:
        raise CompileException('default_program(2): error: identifier "y" is undefined\n')
