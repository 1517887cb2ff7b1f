/* The CPU implementation of the torch op tersely::w4a8_linear: converts tensors to the layers of w4a8.c and back.
 *
 * It calls only functions of torch's stable C interface (torch/csrc/stable/c/shim.h and
 * torch/csrc/inductor/aoti_torch/c/shim.h). ../native.py passes them in, so neither torch nor its headers are needed to
 * build this. */

#include "w4a8.h"

#include <stdbool.h>
#include <stdlib.h>

typedef void *tensor;
typedef uint64_t slot; /* an argument or result on torch's stack: a tensor, or for an optional one, a pointer to it or 0 */
typedef int32_t failed; /* 0 for success */
typedef void an_op(slot *stack, uint64_t arguments, uint64_t results);

enum { UINT8 = FLOAT16 + 1, DTYPES, MOST_DIM = 64 };
#define TORCH_VERSION ((uint64_t)2 << 56 | (uint64_t)13 << 48) /* whose calling convention this follows */

/* With torch's names and signatures. */
typedef struct {
    failed (*get_const_data_ptr)(tensor, const void **), (*get_mutable_data_ptr)(tensor, void **);
    failed (*get_dim)(tensor, int64_t *), (*get_sizes)(tensor, int64_t **), (*get_strides)(tensor, int64_t **);
    failed (*get_dtype)(tensor, int32_t *);
    failed (*empty_strided)(
        int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device, int32_t index, tensor *out
    );
    failed (*delete_tensor_object)(tensor), (*delete_stable_ivalue)(slot *), (*get_num_threads)(uint32_t *);
    const char *(*exception_get_what)(void);
    void (*check)(bool right, const char *function, const char *file, uint32_t line, const char *message);
    failed (*library_init_impl)(const char *space, const char *key, const char *file, uint32_t line, void **library);
    failed (*library_impl)(void *library, const char *name, an_op *op, uint64_t torch_version);
    int32_t dtypes[DTYPES], cpu;
} torch_calls;

static torch_calls torch; /* written once, by tersely_w4a8_register */
static float margin_of_planes;
/* The vector instructions and the threads to use; tests change them. */
EXPORT int64_t tersely_w4a8_vectors;
EXPORT parallel *tersely_w4a8_team;

typedef struct {
    const char *data; /* NULL for a missing tensor */
    int64_t dim, *sizes, *strides;
    int32_t dtype; /* FLOAT32 to UINT8, or DTYPES for any other */
    bool given, contiguous;
} view;

static failed look(tensor from, view *to) {
    int32_t dtype;
    *to = (view){.given = true, .contiguous = true, .dtype = DTYPES};
    if (torch.get_const_data_ptr(from, (const void **)&to->data) || torch.get_dim(from, &to->dim) ||
        torch.get_sizes(from, &to->sizes) || torch.get_strides(from, &to->strides) || torch.get_dtype(from, &dtype))
        return 1;
    for (int i = 0; i < DTYPES; i++)
        if (torch.dtypes[i] == dtype) to->dtype = i;
    int64_t step = 1;
    for (int64_t d = to->dim - 1; d >= 0; step *= to->sizes[d--])
        to->contiguous = to->contiguous && (to->sizes[d] == 1 || to->strides[d] == step);
    to->contiguous = to->contiguous || !step;
    return 0;
}

/* Whether the tensor is missing, or contiguous with these sizes and a dtype from `first` to `last`. */
static bool is(const view *of, int first, int last, int64_t dim, const int64_t *sizes) {
    if (!of->given) return true;
    bool same = of->dim == dim && of->dtype >= first && of->dtype <= last && of->contiguous;
    for (int64_t d = 0; same && d < dim; d++) same = of->sizes[d] == sizes[d];
    return same;
}

#define SIZES(...) (sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}

enum { WEIGHT, GROUPS, CHANNEL_SCALE, INPUT_SCALE, BIAS, PARTS };

/* Fills in a layer if its tensors fit. The rules are those of `check_layer` in ../w4a8_layout.py, which explains errors. */
static bool fill(w4a8_layer *layer, const view *of, int64_t columns) {
    const view *weight = of + WEIGHT, *groups = of + GROUPS, *scale = of + CHANNEL_SCALE;
    if (scale->dim != 1 || (weight->dim != 3 && (groups->given || weight->dim != 4))) return false;
    if (groups->given && (groups->dim != 4 || groups->sizes[1] < 1)) return false;
    *layer = (w4a8_layer){
        .codes = (const uint8_t *)weight->data, .groups = (const uint8_t *)groups->data,
        .channel_scale = (const float *)scale->data, .input_scale = (const float *)of[INPUT_SCALE].data, .bias = of[BIAS].data,
        .form = groups->given ? GRAINS : weight->dim == 4 ? PLANES : BYTES, .bias_kind = of[BIAS].dtype,
        .columns = columns, .outputs = scale->sizes[0], .lines = weight->sizes[weight->dim - 2],
        .group_count = groups->given ? groups->sizes[1] : 1, .level = tersely_w4a8_vectors, .margin = margin_of_planes,
    };
    const int64_t tiles = tiles_of(layer), depth = depth_of(layer), inputs = layer->form == BYTES ? 4 : 8;
    const int64_t size = groups->given ? depth / layer->group_count : inputs;
    if (layer->outputs < 1 || depth < 1 || depth > DEEPEST || depth < columns || depth - columns >= size) return false;
    if (groups->given && ((size != 32 && size != 64 && size != 128) || depth != size * layer->group_count)) return false;
    bool lies = layer->form == PLANES ? is(weight, UINT8, UINT8, SIZES(2, tiles, layer->lines, LINE))
                                      : is(weight, UINT8, UINT8, SIZES(tiles, layer->lines, LINE));
    return lies && is(groups, UINT8, UINT8, SIZES(tiles, layer->group_count, 2, TILE)) &&
           is(scale, FLOAT32, FLOAT32, SIZES(layer->outputs)) && is(of + INPUT_SCALE, FLOAT32, FLOAT32, SIZES(columns)) &&
           is(of + BIAS, FLOAT32, FLOAT16, SIZES(layer->outputs));
}

/* Fills in the layer and, if there is one, the second layer with 8-bit weights. */
static bool fill_both(w4a8_layer *layers, const view *of, const view *weight, const view *scale, int64_t columns) {
    view first[PARTS], second[PARTS] = {0};
    int64_t own = of[CHANNEL_SCALE].dim == 1 ? of[CHANNEL_SCALE].sizes[0] : 0, others;
    memcpy(first, of, sizeof first);
    if (!weight->given && !scale->given) return fill(layers, first, columns);
    if (!weight->given || !scale->given || scale->dim != 1) return false;
    others = scale->sizes[0];
    second[WEIGHT] = *weight;
    second[CHANNEL_SCALE] = *scale;
    second[INPUT_SCALE] = of[INPUT_SCALE];
    const view *bias = of + BIAS;
    if (bias->given) {
        if (!is(bias, FLOAT32, FLOAT16, SIZES(own + others))) return false;
        first[BIAS].sizes = &own;
        second[BIAS] = *bias;
        second[BIAS].sizes = &others;
        second[BIAS].data += own * size_of(bias->dtype);
    }
    if (!fill(layers, first, columns) || !fill(layers + 1, second, columns)) return false;
    layers[0].next = layers + 1;
    return true;
}

/* The stride between rows of x in elements; -1 if it is not constant. */
static int64_t stride_of(const view *x) {
    const int64_t last = x->dim - 1;
    int64_t stride = 0, rows = 1;
    if (x->sizes[last] > 1 && x->strides[last] != 1) return -1;
    for (int64_t d = last - 1; d >= 0; rows *= x->sizes[d--]) {
        if (x->sizes[d] == 1) continue;
        if (rows == 1) stride = x->strides[d];
        else if (x->strides[d] != stride * rows) return -1;
    }
    return stride;
}

/* A contiguous copy of x, which the caller frees; NULL if out of memory. */
static char *contiguous_copy(const view *x, int64_t rows) {
    const int64_t last = x->dim - 1, columns = x->sizes[last], step = x->strides[last], size = size_of(x->dtype);
    char *copy = malloc((size_t)(rows * columns * size)), *to = copy;
    for (int64_t row = 0; copy && row < rows; row++) {
        int64_t at = 0, rest = row;
        for (int64_t d = last - 1; d >= 0; rest /= x->sizes[d--]) at += rest % x->sizes[d] * x->strides[d];
        for (int64_t i = 0; i < columns; i++, to += size) memcpy(to, x->data + (at + i * step) * size, (size_t)size);
    }
    return copy;
}

/* Computes the result; returns NULL or an error message. */
static const char *compute(const view *x, const w4a8_layer *layers, tensor *out) {
    int64_t rows = 1, sizes[MOST_DIM], strides[MOST_DIM], step = 1, stride = stride_of(x);
    const int64_t last = x->dim - 1;
    memcpy(sizes, x->sizes, (size_t)x->dim * sizeof *sizes);
    sizes[last] = layers->outputs + (layers->next ? layers->next->outputs : 0);
    for (int64_t d = last; d >= 0; d--) {
        strides[d] = step;
        step *= sizes[d] > 1 ? sizes[d] : 1;
        if (d < last) rows *= sizes[d];
    }
    void *to;
    uint32_t threads;
    if (torch.empty_strided(x->dim, sizes, strides, torch.dtypes[x->dtype], torch.cpu, 0, out) ||
        torch.get_mutable_data_ptr(*out, &to) || torch.get_num_threads(&threads))
        return torch.exception_get_what();
    if (!rows) return NULL;
    char *copy = NULL, *room = malloc((size_t)tersely_w4a8_room(layers, rows));
    const char *from = x->data;
    if (stride < 0) {
        stride = x->sizes[last];
        from = copy = contiguous_copy(x, rows);
    }
    if (room && from) tersely_w4a8_run(layers, from, x->dtype, rows, stride, to, room, tersely_w4a8_team, threads);
    free(copy);
    free(room);
    return room && from ? NULL : "out of memory";
}

enum { X, FIRST, SECOND_WEIGHT = FIRST + PARTS, SECOND_SCALE, ARGUMENTS };

static void linear(slot *stack, uint64_t arguments, uint64_t results) {
    static const bool optional[ARGUMENTS] = {[FIRST + GROUPS] = true, [FIRST + INPUT_SCALE] = true, [FIRST + BIAS] = true,
                                             [SECOND_WEIGHT] = true, [SECOND_SCALE] = true};
    tensor given[ARGUMENTS], out = NULL;
    view of[ARGUMENTS] = {0};
    w4a8_layer layers[2];
    const char *wrong = NULL;
    torch.check(arguments == ARGUMENTS && results == 1, __func__, __FILE__, __LINE__, "wrong number of arguments");
    for (int i = 0; i < ARGUMENTS; i++) {
        slot *kept = optional[i] ? (slot *)(uintptr_t)stack[i] : stack + i;
        given[i] = kept ? (tensor)(uintptr_t)*kept : NULL;
        if (optional[i] && kept) torch.delete_stable_ivalue(kept);
        if (given[i] && look(given[i], of + i)) wrong = torch.exception_get_what();
    }
    const view *x = of + X;
    if (!wrong && (x->dtype > FLOAT16 || x->dim < 1 || x->dim > MOST_DIM ||
                   !fill_both(layers, of + FIRST, of + SECOND_WEIGHT, of + SECOND_SCALE, x->sizes[x->dim - 1])))
        wrong = "the tensors do not fit; call w4a8_linear of tersely.kernels.w4a8 for a precise message";
    if (!wrong) wrong = compute(x, layers, &out);
    for (int i = 0; i < ARGUMENTS; i++)
        if (given[i]) torch.delete_tensor_object(given[i]);
    if (wrong && out) torch.delete_tensor_object(out);
    torch.check(!wrong, __func__, __FILE__, __LINE__, wrong); /* raises RuntimeError */
    stack[0] = (slot)(uintptr_t)out;
}

/* Registers the op's CPU implementation. */
EXPORT failed tersely_w4a8_register(const torch_calls *calls, float margin, parallel *team) {
    void *library;
    torch = *calls;
    margin_of_planes = margin;
    tersely_w4a8_team = team;
    tersely_w4a8_vectors = tersely_w4a8_level();
    return torch.library_init_impl("tersely", "CPU", "w4a8_op.c", 0, &library) ||
           torch.library_impl(library, "w4a8_linear", linear, TORCH_VERSION);
}
