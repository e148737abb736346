// Rotation to positions, and the gated activation of the feed-forward block.

// Turns the heads of each row by its position's angles, halves paired, in place; `sign` -1 turns
// gradients back. `cos` and `sin` are (positions, head_dim / 2). A block for each row.
extern "C" __global__ void rotate(element* __restrict__ x, const unsigned* __restrict__ positions,
                                  const float* __restrict__ cos, const float* __restrict__ sin,
                                  unsigned width, unsigned head_dim, float sign) {
    const unsigned half = head_dim / 2;
    const size_t angles = static_cast<size_t>(positions[blockIdx.x]) * half;
    element* row = x + static_cast<size_t>(blockIdx.x) * width;
    for (unsigned pair = threadIdx.x; pair < width / 2; pair += blockDim.x) {
        const unsigned angle = pair % half;
        element* head = row + pair / half * head_dim;
        const float c = cos[angles + angle], s = sign * sin[angles + angle];
        const float first = widen(head[angle]), second = widen(head[angle + half]);
        head[angle] = narrow(first * c - second * s);
        head[angle + half] = narrow(second * c + first * s);
    }
}

__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

// y = silu(gate) up
extern "C" __global__ void swiglu(const element* __restrict__ gate, const element* __restrict__ up,
                                  element* __restrict__ y, unsigned long long count) {
    for (size_t i = grid_index(); i < count; i += grid_size()) {
        const float z = widen(gate[i]);
        y[i] = narrow(z * sigmoid(z) * widen(up[i]));
    }
}

// Overwrites gate and up with their gradients, and the gradient g of y with y: the three that the
// products around it need next.
extern "C" __global__ void swiglu_backward(element* __restrict__ gate, element* __restrict__ up,
                                           element* __restrict__ g, unsigned long long count) {
    for (size_t i = grid_index(); i < count; i += grid_size()) {
        const float z = widen(gate[i]), u = widen(up[i]), dy = widen(g[i]);
        const float sigma = sigmoid(z), silu = z * sigma;
        gate[i] = narrow(dy * u * sigma * (1.0f + z * (1.0f - sigma)));
        up[i] = narrow(dy * silu);
        g[i] = narrow(silu * u);
    }
}
