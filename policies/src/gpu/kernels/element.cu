// Types and reductions that the other kernel files share. Compiled once with -DELEMENT_BF16=1 and
// once without: an `element` is what weights and activations are stored as, arithmetic is f32.
//
// No kernel adds with atomics: every sum runs in an order that shapes alone decide, so that equal
// inputs give equal bits.

#if ELEMENT_BF16
// The upper half of an f32.
typedef unsigned short element;

__device__ __forceinline__ float widen(element value) {
    return __uint_as_float(static_cast<unsigned>(value) << 16);
}

// Rounds to the nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ element narrow(float value) {
    unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<element>((bits >> 16) | 0x40u);
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return static_cast<element>(bits >> 16);
}
#else
typedef float element;

__device__ __forceinline__ float widen(element value) { return value; }

__device__ __forceinline__ element narrow(float value) { return value; }
#endif

#define WARP 32u
#define ALL_LANES 0xffffffffu
#define NEGATIVE_INFINITY __uint_as_float(0xff800000u)

__device__ __forceinline__ unsigned lane_index() { return threadIdx.x % WARP; }

__device__ __forceinline__ unsigned warp_index() { return threadIdx.x / WARP; }

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// The sum over a block's threads, given to each of them. Blocks are whole warps, at most 32.
template <class T>
__device__ T block_sum(T value) {
    __shared__ T partial[WARP];
    value = warp_sum(value);
    if (blockDim.x == WARP) return value;
    __syncthreads();  // an earlier call's partial sums may still be read
    if (lane_index() == 0) partial[warp_index()] = value;
    __syncthreads();
    value = lane_index() < blockDim.x / WARP ? partial[lane_index()] : T(0);
    return warp_sum(value);
}

__device__ __forceinline__ float block_max(float value) {
    __shared__ float partial[WARP];
    value = warp_max(value);
    if (blockDim.x == WARP) return value;
    __syncthreads();
    if (lane_index() == 0) partial[warp_index()] = value;
    __syncthreads();
    value = lane_index() < blockDim.x / WARP ? partial[lane_index()] : NEGATIVE_INFINITY;
    return warp_max(value);
}

// Index of this thread in the grid and number of threads of the grid.
__device__ __forceinline__ size_t grid_index() {
    return static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ size_t grid_size() {
    return static_cast<size_t>(gridDim.x) * blockDim.x;
}
