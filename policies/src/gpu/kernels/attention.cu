// Causal attention with grouped queries, without a rows by rows matrix (Dao et al. 2022,
// arXiv:2205.14135; Milakov and Gimelshein 2018, arXiv:1805.02867 for the running softmax).
//
// A block takes a tile of 32 query rows of one key head and walks over tiles of 32 keys. Its four
// warps own eight query rows each: a lane holds one key's scores, then some columns of the result.
// The query heads that share a key head are rows of the same tile: row v of a segment's tiles is
// query v / group, head v % group of the group.
//
// `tiles` has five words a tile: the row that holds the segment's query 0, the tile's first row v,
// how many rows it has, and two that say where the keys are.

#define TILE 32u
#define TILE_WARPS 4u
#define WARP_ROWS 8u
#define MOST_COLUMNS 4u  // a lane's share of 128 columns

#if EMULATED
#define SHARED_FLOATS(name) float* name = static_cast<float*>(emulation::dynamic_shared())
#else
#define SHARED_FLOATS(name) extern __shared__ __align__(16) float name[]
#endif

// Floats between the rows of a tile: whole float4s, and no two lanes of eight in the same bank.
__device__ __forceinline__ unsigned tile_stride(unsigned head_dim) {
    return ((head_dim + 3) & ~3u) + 4;
}

__device__ __forceinline__ float4 quad(const float* values) {
    return *reinterpret_cast<const float4*>(values);
}

__device__ __forceinline__ float dot4(float4 a, float4 b, float sum) {
    return sum + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// Fills a tile with the rows that `row` points at; beyond `count` and `head_dim` it is zero.
template <class Row>
__device__ __forceinline__ void load_tile(float* tile, unsigned count, unsigned head_dim,
                                          const Row& row) {
    const unsigned stride = tile_stride(head_dim);
    for (unsigned i = warp_index(); i < TILE; i += TILE_WARPS) {
        const element* from = i < count ? row(i) : nullptr;
        for (unsigned d = lane_index(); d < stride; d += WARP)
            tile[i * stride + d] = from != nullptr && d < head_dim ? widen(from[d]) : 0.0f;
    }
}

// Keys and values in rows of a batch: a prompt's rows, then the segment's own.
struct PackedKeys {
    const element* k;
    const element* v;
    unsigned width, column, own, prefix, prefix_length;

    __device__ size_t at(unsigned position) const {
        const unsigned row =
            position < prefix_length ? prefix + position : own + position - prefix_length;
        return static_cast<size_t>(row) * width + column;
    }
    __device__ const element* key(unsigned position) const { return k + at(position); }
    __device__ const element* value(unsigned position) const { return v + at(position); }
};

// Keys and values in blocks of 32 positions: (block, layer, head, key or value, 32, head_dim).
struct CachedKeys {
    const element* blocks;
    const unsigned* table;
    unsigned layer, layers, head, kv_heads, head_dim;

    __device__ const element* key(unsigned position) const {
        const size_t place =
            (static_cast<size_t>(table[position / TILE]) * layers + layer) * kv_heads + head;
        return blocks + (place * 2 * TILE + position % TILE) * head_dim;
    }
    __device__ const element* value(unsigned position) const {
        return key(position) + TILE * head_dim;
    }
};

// Where the rows of a tile are in a batch of (rows, heads * head_dim).
struct QueryTile {
    unsigned row, first, count, kv_head, heads, group, head_dim;

    __device__ unsigned query(unsigned i) const { return (first + i) / group; }
    // row * heads + head, of a value a row and head
    __device__ size_t place(unsigned i) const {
        return static_cast<size_t>(row + query(i)) * heads + kv_head * group + (first + i) % group;
    }
    __device__ size_t at(unsigned i) const { return place(i) * head_dim; }
};

// out = softmax(q kᵀ scale) v over the keys up to each query's own position, which is
// `position` + its index. Leaves the log of each row's sum of exponentials where asked.
template <class Keys>
__device__ void attend(const Keys& keys, const QueryTile& tile, unsigned position,
                       const element* q, element* out, float* logsumexps) {
    SHARED_FLOATS(shared);
    const unsigned head_dim = tile.head_dim, stride = tile_stride(head_dim);
    float* queries = shared;
    float* key_tile = queries + TILE * stride;
    float* value_tile = key_tile + TILE * stride;
    float* weights = value_tile + TILE * stride;
    const unsigned lane = lane_index(), first = warp_index() * WARP_ROWS;
    const bool works = first < tile.count;
    const float scale = 1.0f / sqrtf(static_cast<float>(head_dim));

    load_tile(queries, tile.count, head_dim, [&](unsigned i) { return q + tile.at(i); });
    float sums[WARP_ROWS][MOST_COLUMNS] = {};
    float largest[WARP_ROWS], total[WARP_ROWS];
    unsigned own[WARP_ROWS];
    for (unsigned r = 0; r < WARP_ROWS; ++r) {
        largest[r] = NEGATIVE_INFINITY;
        total[r] = 0.0f;
        own[r] = first + r < tile.count ? position + tile.query(first + r) : 0;
    }
    const unsigned seen = position + tile.query(tile.count - 1) + 1;
    for (unsigned start = 0; start < seen; start += TILE) {
        const unsigned held = min(TILE, seen - start);
        __syncthreads();
        load_tile(key_tile, held, head_dim, [&](unsigned i) { return keys.key(start + i); });
        load_tile(value_tile, held, head_dim, [&](unsigned i) { return keys.value(start + i); });
        __syncthreads();
        if (!works) continue;
        float scores[WARP_ROWS] = {};
        for (unsigned d = 0; d < stride - 4; d += 4) {
            const float4 key = quad(key_tile + lane * stride + d);
#pragma unroll
            for (unsigned r = 0; r < WARP_ROWS; ++r)
                scores[r] = dot4(quad(queries + (first + r) * stride + d), key, scores[r]);
        }
#pragma unroll
        for (unsigned r = 0; r < WARP_ROWS; ++r) {
            const float score =
                start + lane <= own[r] ? scores[r] * scale : NEGATIVE_INFINITY;
            // Key 0 is seen by every query, so the largest is a number from the first tile on.
            const float now = fmaxf(largest[r], warp_max(score));
            const float p = expf(score - now), kept = expf(largest[r] - now);
            total[r] = total[r] * kept + warp_sum(p);
            largest[r] = now;
            for (unsigned c = 0; c < MOST_COLUMNS; ++c) sums[r][c] *= kept;
            weights[(first + r) * TILE + lane] = p;
        }
        __syncwarp();
        for (unsigned j = 0; j < TILE; j += 4) {
            float4 p[WARP_ROWS];
#pragma unroll
            for (unsigned r = 0; r < WARP_ROWS; ++r) p[r] = quad(weights + (first + r) * TILE + j);
#pragma unroll
            for (unsigned c = 0; c < MOST_COLUMNS; ++c) {
                const unsigned column = lane + c * WARP;
                if (column >= head_dim) continue;
                const float* v = value_tile + j * stride + column;
                const float4 values = {v[0], v[stride], v[2 * stride], v[3 * stride]};
#pragma unroll
                for (unsigned r = 0; r < WARP_ROWS; ++r)
                    sums[r][c] = dot4(p[r], values, sums[r][c]);
            }
        }
        __syncwarp();
    }
#pragma unroll
    for (unsigned r = 0; r < WARP_ROWS; ++r) {
        const unsigned i = first + r;
        if (i >= tile.count) continue;
#pragma unroll
        for (unsigned c = 0; c < MOST_COLUMNS; ++c) {
            const unsigned column = lane + c * WARP;
            if (column < head_dim) out[tile.at(i) + column] = narrow(sums[r][c] / total[r]);
        }
        if (logsumexps != nullptr && lane == 0)
            logsumexps[tile.place(i)] = largest[r] + logf(total[r]);
    }
}

__device__ __forceinline__ QueryTile query_tile(const unsigned* words, unsigned heads,
                                                unsigned kv_heads, unsigned head_dim) {
    return {words[0], words[1], words[2], blockIdx.y, heads, heads / kv_heads, head_dim};
}

__device__ __forceinline__ PackedKeys packed_keys(const unsigned* words, const element* k,
                                                  const element* v, unsigned kv_heads,
                                                  unsigned head_dim) {
    return {k, v, kv_heads * head_dim, blockIdx.y * head_dim, words[0], words[3], words[4]};
}

// Within packed sequences; words 3 and 4 are the prompt's first row and its length, 0 for a
// segment that continues none. Grid: tiles by key heads.
extern "C" __global__ void __launch_bounds__(128)
    attention(const element* __restrict__ q, const element* __restrict__ k,
              const element* __restrict__ v, const unsigned* __restrict__ tiles,
              element* __restrict__ out, float* __restrict__ logsumexps, unsigned heads,
              unsigned kv_heads, unsigned head_dim) {
    const unsigned* words = tiles + blockIdx.x * 5;
    attend(packed_keys(words, k, v, kv_heads, head_dim),
           query_tile(words, heads, kv_heads, head_dim), words[4], q, out, logsumexps);
}

// Over a cache that holds the keys and values of the queries' own positions too; words 3 and 4 are
// query 0's position and where its sequence's blocks begin in `tables`. Grid: tiles by key heads.
extern "C" __global__ void __launch_bounds__(128)
    attention_cached(const element* __restrict__ q, const element* __restrict__ blocks,
                     const unsigned* __restrict__ tables, const unsigned* __restrict__ tiles,
                     element* __restrict__ out, unsigned layer, unsigned layers, unsigned heads,
                     unsigned kv_heads, unsigned head_dim) {
    const unsigned* words = tiles + blockIdx.x * 5;
    const CachedKeys keys = {blocks, tables + words[4], layer,   layers,
                             blockIdx.y, kv_heads,      head_dim};
    attend(keys, query_tile(words, heads, kv_heads, head_dim), words[3], q, out, nullptr);
}

// Writes rows of keys and values, (rows, kv_heads * head_dim), to their places in the cache: place
// = block * 32 + position % 32. A block for each row.
extern "C" __global__ void write_cache(const element* __restrict__ k,
                                       const element* __restrict__ v,
                                       const unsigned* __restrict__ places,
                                       element* __restrict__ blocks, unsigned layer,
                                       unsigned layers, unsigned kv_heads, unsigned head_dim) {
    const unsigned width = kv_heads * head_dim, place = places[blockIdx.x];
    const size_t row = static_cast<size_t>(blockIdx.x) * width;
    const size_t block = (static_cast<size_t>(place / TILE) * layers + layer) * kv_heads;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const size_t at =
            ((block + i / head_dim) * 2 * TILE + place % TILE) * head_dim + i % head_dim;
        blocks[at] = k[row + i];
        blocks[at + TILE * head_dim] = v[row + i];
    }
}

// D = g · out of each row and head; a warp for each.
extern "C" __global__ void attention_deltas(const element* __restrict__ out,
                                            const element* __restrict__ g,
                                            float* __restrict__ deltas, unsigned count,
                                            unsigned head_dim) {
    const unsigned place = blockIdx.x * (blockDim.x / WARP) + warp_index();
    if (place >= count) return;
    const size_t start = static_cast<size_t>(place) * head_dim;
    float sum = 0.0f;
    for (unsigned d = lane_index(); d < head_dim; d += WARP)
        sum += widen(out[start + d]) * widen(g[start + d]);
    sum = warp_sum(sum);
    if (lane_index() == 0) deltas[place] = sum;
}

// dq_t = Σ_j ds_tj k_j with ds_tj = p_tj (g_t · v_j - D_t) scale; p is computed anew from the
// log-sum-exps. Tiles and grid as in `attention`.
extern "C" __global__ void __launch_bounds__(128)
    attention_dq(const element* __restrict__ q, const element* __restrict__ k,
                 const element* __restrict__ v, const element* __restrict__ g,
                 const float* __restrict__ logsumexps, const float* __restrict__ deltas,
                 const unsigned* __restrict__ tiles, element* __restrict__ dq, unsigned heads,
                 unsigned kv_heads, unsigned head_dim) {
    SHARED_FLOATS(shared);
    const unsigned* words = tiles + blockIdx.x * 5;
    const QueryTile tile = query_tile(words, heads, kv_heads, head_dim);
    const PackedKeys keys = packed_keys(words, k, v, kv_heads, head_dim);
    const unsigned stride = tile_stride(head_dim), position = words[4];
    float* queries = shared;
    float* gradients = queries + TILE * stride;
    float* key_tile = gradients + TILE * stride;
    float* value_tile = key_tile + TILE * stride;
    float* weights = value_tile + TILE * stride;
    const unsigned lane = lane_index(), first = warp_index() * WARP_ROWS;
    const bool works = first < tile.count;
    const float scale = 1.0f / sqrtf(static_cast<float>(head_dim));

    load_tile(queries, tile.count, head_dim, [&](unsigned i) { return q + tile.at(i); });
    load_tile(gradients, tile.count, head_dim, [&](unsigned i) { return g + tile.at(i); });
    float sums[WARP_ROWS][MOST_COLUMNS] = {};
    float logsumexp[WARP_ROWS], delta[WARP_ROWS];
    unsigned own[WARP_ROWS];
    for (unsigned r = 0; r < WARP_ROWS; ++r) {
        const bool held = first + r < tile.count;
        logsumexp[r] = held ? logsumexps[tile.place(first + r)] : 0.0f;
        delta[r] = held ? deltas[tile.place(first + r)] : 0.0f;
        own[r] = held ? position + tile.query(first + r) : 0;
    }
    const unsigned seen = position + tile.query(tile.count - 1) + 1;
    for (unsigned start = 0; start < seen; start += TILE) {
        const unsigned held = min(TILE, seen - start);
        __syncthreads();
        load_tile(key_tile, held, head_dim, [&](unsigned i) { return keys.key(start + i); });
        load_tile(value_tile, held, head_dim, [&](unsigned i) { return keys.value(start + i); });
        __syncthreads();
        if (!works) continue;
        float scores[WARP_ROWS] = {}, products[WARP_ROWS] = {};
        for (unsigned d = 0; d < stride - 4; d += 4) {
            const float4 key = quad(key_tile + lane * stride + d);
            const float4 value = quad(value_tile + lane * stride + d);
#pragma unroll
            for (unsigned r = 0; r < WARP_ROWS; ++r) {
                const unsigned at = (first + r) * stride + d;
                scores[r] = dot4(quad(queries + at), key, scores[r]);
                products[r] = dot4(quad(gradients + at), value, products[r]);
            }
        }
#pragma unroll
        for (unsigned r = 0; r < WARP_ROWS; ++r) {
            const bool visible = start + lane <= own[r];
            const float p = visible ? expf(scores[r] * scale - logsumexp[r]) : 0.0f;
            weights[(first + r) * TILE + lane] = p * (products[r] - delta[r]) * scale;
        }
        __syncwarp();
        for (unsigned j = 0; j < TILE; j += 4) {
            float4 ds[WARP_ROWS];
#pragma unroll
            for (unsigned r = 0; r < WARP_ROWS; ++r)
                ds[r] = quad(weights + (first + r) * TILE + j);
#pragma unroll
            for (unsigned c = 0; c < MOST_COLUMNS; ++c) {
                const unsigned column = lane + c * WARP;
                if (column >= head_dim) continue;
                const float* key = key_tile + j * stride + column;
                const float4 values = {key[0], key[stride], key[2 * stride], key[3 * stride]};
#pragma unroll
                for (unsigned r = 0; r < WARP_ROWS; ++r)
                    sums[r][c] = dot4(ds[r], values, sums[r][c]);
            }
        }
        __syncwarp();
    }
#pragma unroll
    for (unsigned r = 0; r < WARP_ROWS; ++r) {
        if (first + r >= tile.count) continue;
#pragma unroll
        for (unsigned c = 0; c < MOST_COLUMNS; ++c) {
            const unsigned column = lane + c * WARP;
            if (column < head_dim) dq[tile.at(first + r) + column] = narrow(sums[r][c]);
        }
    }
}

// dv_j = Σ_t p_tj g_t and dk_j = Σ_t ds_tj q_t of a tile of 32 keys, over the query rows that see
// them and the heads of the group, in their order. `tiles` has three words a tile: the first key's
// row, how many keys, and where the rows end that see them: a prompt's are seen by all its
// replies, whose rows follow it. A row sees the keys at or before it. Grid: tiles by key heads.
extern "C" __global__ void __launch_bounds__(128)
    attention_dkv(const element* __restrict__ q, const element* __restrict__ k,
                  const element* __restrict__ v, const element* __restrict__ g,
                  const float* __restrict__ logsumexps, const float* __restrict__ deltas,
                  const unsigned* __restrict__ tiles, element* __restrict__ dk,
                  element* __restrict__ dv, unsigned heads, unsigned kv_heads,
                  unsigned head_dim) {
    SHARED_FLOATS(shared);
    const unsigned* words = tiles + blockIdx.x * 3;
    const unsigned key_row = words[0], count = words[1], end = words[2];
    const unsigned stride = tile_stride(head_dim), width = kv_heads * head_dim;
    float* key_tile = shared;
    float* value_tile = key_tile + TILE * stride;
    float* queries = value_tile + TILE * stride;
    float* gradients = queries + TILE * stride;
    float* weights = gradients + TILE * stride;
    float* slopes = weights + TILE * TILE;
    const unsigned lane = lane_index(), first = warp_index() * WARP_ROWS;
    const bool works = first < count;
    const float scale = 1.0f / sqrtf(static_cast<float>(head_dim));

    const size_t keys_at = static_cast<size_t>(key_row) * width + blockIdx.y * head_dim;
    load_tile(key_tile, count, head_dim, [&](unsigned i) { return k + keys_at + i * width; });
    load_tile(value_tile, count, head_dim, [&](unsigned i) { return v + keys_at + i * width; });
    float dk_sums[WARP_ROWS][MOST_COLUMNS] = {}, dv_sums[WARP_ROWS][MOST_COLUMNS] = {};
    const unsigned group = heads / kv_heads, rows = (end - key_row) * group;
    for (unsigned start = 0; start < rows; start += TILE) {
        const QueryTile tile = {key_row,    start, min(TILE, rows - start),
                                blockIdx.y, heads, group,
                                head_dim};
        __syncthreads();
        load_tile(queries, tile.count, head_dim, [&](unsigned i) { return q + tile.at(i); });
        load_tile(gradients, tile.count, head_dim, [&](unsigned i) { return g + tile.at(i); });
        __syncthreads();
        if (!works) continue;
        float scores[WARP_ROWS] = {}, products[WARP_ROWS] = {};
        for (unsigned d = 0; d < stride - 4; d += 4) {
            const float4 query = quad(queries + lane * stride + d);
            const float4 gradient = quad(gradients + lane * stride + d);
#pragma unroll
            for (unsigned r = 0; r < WARP_ROWS; ++r) {
                const unsigned at = (first + r) * stride + d;
                scores[r] = dot4(quad(key_tile + at), query, scores[r]);
                products[r] = dot4(quad(value_tile + at), gradient, products[r]);
            }
        }
        const bool held = lane < tile.count;
        const float logsumexp = held ? logsumexps[tile.place(lane)] : 0.0f;
        const float delta = held ? deltas[tile.place(lane)] : 0.0f;
#pragma unroll
        for (unsigned r = 0; r < WARP_ROWS; ++r) {
            // Keys and queries count their rows from the same one.
            const bool visible = held && first + r <= tile.query(lane);
            const float p = visible ? expf(scores[r] * scale - logsumexp) : 0.0f;
            weights[(first + r) * TILE + lane] = p;
            slopes[(first + r) * TILE + lane] = p * (products[r] - delta) * scale;
        }
        __syncwarp();
        for (unsigned j = 0; j < TILE; j += 4) {
#pragma unroll
            for (unsigned c = 0; c < MOST_COLUMNS; ++c) {
                const unsigned column = lane + c * WARP;
                if (column >= head_dim) continue;
                const float* of_q = queries + j * stride + column;
                const float* of_g = gradients + j * stride + column;
                const float4 query = {of_q[0], of_q[stride], of_q[2 * stride], of_q[3 * stride]};
                const float4 gradient = {of_g[0], of_g[stride], of_g[2 * stride],
                                         of_g[3 * stride]};
#pragma unroll
                for (unsigned r = 0; r < WARP_ROWS; ++r) {
                    const unsigned at = (first + r) * TILE + j;
                    dv_sums[r][c] = dot4(quad(weights + at), gradient, dv_sums[r][c]);
                    dk_sums[r][c] = dot4(quad(slopes + at), query, dk_sums[r][c]);
                }
            }
        }
        __syncwarp();
    }
#pragma unroll
    for (unsigned r = 0; r < WARP_ROWS; ++r) {
        if (first + r >= count) continue;
#pragma unroll
        for (unsigned c = 0; c < MOST_COLUMNS; ++c) {
            const unsigned column = lane + c * WARP;
            if (column >= head_dim) continue;
            const size_t at = keys_at + static_cast<size_t>(first + r) * width + column;
            dk[at] = narrow(dk_sums[r][c]);
            dv[at] = narrow(dv_sums[r][c]);
        }
    }
}
