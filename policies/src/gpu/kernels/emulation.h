// What the kernels need to run on a CPU, for tests: a block's threads are fibers that take turns,
// so that barriers and shuffles mean what they mean on a GPU. Blocks run one after the other.
//
// Stricter than a GPU: a barrier that some thread of the block (or a shuffle that some lane of the
// warp) does not reach is an error, and shared memory begins as NaN. Threads run in random
// orders, and warps are held back while others go on, so that a barrier that is missing shows in the
// results.

#include <sys/mman.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#if !(defined(__x86_64__) && defined(__linux__))
#include <ucontext.h>
#endif

#define EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emulation {

struct Index {
    unsigned x, y, z;
};

constexpr size_t STACK_BYTES = 64 << 10;
constexpr unsigned MOST_THREADS = 1024, WARP_LANES = 32;

#if defined(__x86_64__) && defined(__linux__)
// Saves what a called function must preserve on the stack, then takes the other stack.
asm(R"(
.text
.local tallow_switch_stacks
.type tallow_switch_stacks, @function
tallow_switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size tallow_switch_stacks, . - tallow_switch_stacks
)");
extern "C" __attribute__((visibility("hidden"))) void tallow_switch_stacks(void** save, void* to);

struct Context {
    void* stack_pointer = nullptr;

    void start(char* stack, void (*entry)()) {
        auto top = reinterpret_cast<uintptr_t>(stack + STACK_BYTES) & ~uintptr_t(15);
        auto* words = reinterpret_cast<uintptr_t*>(top);
        words[-1] = 0;
        words[-2] = reinterpret_cast<uintptr_t>(entry);
        for (int i = 3; i <= 8; ++i) words[-i] = 0;
        stack_pointer = words - 8;
    }
    void switch_to(Context& other) { tallow_switch_stacks(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
    ucontext_t context;

    void start(char* stack, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = STACK_BYTES;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif

enum class State { Runs, AtBlockBarrier, AtWarpBarrier, Ended };

struct Fiber {
    Context context;
    Index thread;
    unsigned linear;
    State state;
    unsigned exchanges;  // shuffles so far
};

// One per thread of the process: tests run side by side.
struct Machine {
    Context scheduler;
    std::vector<Fiber> fibers;
    char* stacks = nullptr;
    std::vector<float4> dynamic;
    unsigned threads = 0;
    unsigned at_block_barrier = 0;
    uint64_t order = 0;
    unsigned at_warp_barrier[MOST_THREADS / WARP_LANES];
    // Two of each: a lane may be one exchange ahead of its neighbours.
    uint64_t exchanged[2][MOST_THREADS];
    void (*kernel)(void**);
    void** arguments;

    ~Machine() {
        if (stacks != nullptr) munmap(stacks, MOST_THREADS * STACK_BYTES);
    }
};

static thread_local Machine machine;
static thread_local Fiber* current;
static thread_local Index block_index, block_size, grid_size;

inline void* dynamic_shared() { return machine.dynamic.data(); }

static void enter() {
    machine.kernel(machine.arguments);
    current->state = State::Ended;
    current->context.switch_to(machine.scheduler);
}

static void wait(State state) {
    current->state = state;
    current->context.switch_to(machine.scheduler);
}

static void block_barrier() {
    if (++machine.at_block_barrier < machine.threads) return wait(State::AtBlockBarrier);
    machine.at_block_barrier = 0;
    for (unsigned i = 0; i < machine.threads; ++i) machine.fibers[i].state = State::Runs;
}

static unsigned warp_lanes(unsigned warp) {
    const unsigned left = machine.threads - warp * WARP_LANES;
    return left < WARP_LANES ? left : WARP_LANES;
}

static void warp_barrier() {
    const unsigned warp = current->linear / WARP_LANES;
    if (++machine.at_warp_barrier[warp] < warp_lanes(warp)) return wait(State::AtWarpBarrier);
    machine.at_warp_barrier[warp] = 0;
    for (unsigned i = 0; i < warp_lanes(warp); ++i)
        machine.fibers[warp * WARP_LANES + i].state = State::Runs;
}

template <class T>
static T exchange(T value, unsigned lane) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "one word a lane");
    const unsigned turn = current->exchanges++ % 2, warp = current->linear / WARP_LANES;
    std::memcpy(&machine.exchanged[turn][current->linear], &value, sizeof(T));
    warp_barrier();
    if (lane >= warp_lanes(warp)) return value;
    T result;
    std::memcpy(&result, &machine.exchanged[turn][warp * WARP_LANES + lane], sizeof(T));
    return result;
}

static const char* run_block() {
    machine.at_block_barrier = 0;
    std::memset(machine.at_warp_barrier, 0, sizeof machine.at_warp_barrier);
    if (!machine.dynamic.empty())
        std::memset(machine.dynamic.data(), 0xff, machine.dynamic.size() * sizeof(float4));
    for (unsigned i = 0; i < machine.threads; ++i) {
        Fiber& fiber = machine.fibers[i];
        fiber.thread = {i, 0, 0};
        fiber.linear = i;
        fiber.state = State::Runs;
        fiber.exchanges = 0;
        fiber.context.start(machine.stacks + i * STACK_BYTES, enter);
    }
    // In each round one warp is held back, as long as others can go on.
    const unsigned warps = (machine.threads + WARP_LANES - 1) / WARP_LANES, none = warps;
    unsigned held = none;
    for (;;) {
        bool ran = false, ended = true;
        // Any thread first, then up or down. A linear congruential step (Knuth's constants).
        machine.order = machine.order * 6364136223846793005u + 1442695040888963407u;
        const unsigned random = static_cast<unsigned>(machine.order >> 32);
        const unsigned first = random / 64 % machine.threads;
        const bool down = random % 2 != 0;
        if (held == none && random / 2 % 2 != 0) held = random / 4 % warps;
        for (unsigned turn = 0; turn < machine.threads; ++turn) {
            const unsigned step = down ? machine.threads - turn : turn;
            Fiber& fiber = machine.fibers[(first + step) % machine.threads];
            if (fiber.state == State::Runs && fiber.linear / WARP_LANES != held) {
                current = &fiber;
                machine.scheduler.switch_to(fiber.context);
                ran = true;
            }
            ended = ended && fiber.state == State::Ended;
        }
        if (ended) return nullptr;
        if (!ran && held == none) return "some threads wait at a barrier that others never reach";
        if (!ran) held = none;
    }
}

template <class T>
constexpr char kind_of() {
    using Plain = std::remove_cv_t<std::remove_pointer_t<T>>;
    if constexpr (std::is_pointer_v<T>) {
        if constexpr (std::is_same_v<Plain, float>) return 'F';
        if constexpr (std::is_same_v<Plain, double>) return 'D';
        if constexpr (std::is_same_v<Plain, unsigned>) return 'U';
        if constexpr (std::is_same_v<Plain, unsigned short>) return 'B';
    } else {
        if constexpr (std::is_same_v<Plain, float>) return 'f';
        if constexpr (std::is_same_v<Plain, unsigned>) return 'u';
        if constexpr (std::is_same_v<Plain, unsigned long long>) return 'l';
    }
    return '?';
}

template <class... A>
struct Signature {
    static constexpr char kinds[] = {kind_of<A>()..., '\0'};
};

template <class... A>
const char* signature(void (*)(A...)) {
    return Signature<A...>::kinds;
}

template <class... A, size_t... I>
void apply_each(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

template <class... A>
void apply(void (*kernel)(A...), void** arguments) {
    apply_each(kernel, arguments, std::index_sequence_for<A...>());
}

}  // namespace emulation

// Runs a kernel over a grid; gives what went wrong, or null.
extern "C" const char* emulated_launch(void (*kernel)(void**), unsigned x, unsigned y,
                                       unsigned threads, unsigned shared_bytes, void** arguments) {
    using namespace emulation;
    if (threads == 0 || threads > MOST_THREADS) return "a block of no or too many threads";
    if (machine.stacks == nullptr) {
        void* stacks = mmap(nullptr, MOST_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stacks == MAP_FAILED) return "no memory for the stacks of a block's threads";
        machine.stacks = static_cast<char*>(stacks);
        machine.fibers.resize(MOST_THREADS);
    }
    machine.dynamic.resize((shared_bytes + sizeof(float4) - 1) / sizeof(float4));
    machine.threads = threads;
    machine.kernel = kernel;
    machine.arguments = arguments;
    block_size = {threads, 1, 1};
    grid_size = {x, y, 1};
    for (unsigned j = 0; j < y; ++j) {
        for (unsigned i = 0; i < x; ++i) {
            block_index = {i, j, 0};
            if (const char* problem = run_block()) return problem;
        }
    }
    return nullptr;
}

#define threadIdx (emulation::current->thread)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

inline void __syncthreads() { emulation::block_barrier(); }
inline void __syncwarp() { emulation::warp_barrier(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned distance) {
    return emulation::exchange(value, (threadIdx.x % 32) ^ distance);
}

template <class T>
T __shfl_up_sync(unsigned, T value, unsigned distance) {
    const unsigned lane = threadIdx.x % 32;
    return emulation::exchange(value, lane >= distance ? lane - distance : lane);
}

template <class T>
T __shfl_sync(unsigned, T value, unsigned lane) {
    return emulation::exchange(value, lane % 32);
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
