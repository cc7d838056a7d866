/* Who qualifies, comparing one vector with theirs, and whose names come first: a scan's loops.
 *
 * A scan reads vectors of users who are scattered over memory, so that it waits for memory more
 * than it computes. Codes of one byte per element are a quarter of what float32 would be, and are
 * asked for some users ahead. They are near enough to leave few users to be compared exactly.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The same file runs on any x86-64 processor, and uses AVX2 where that has it. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define BY_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define BY_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

#define GREATER(one, other) ((one) > (other) ? (one) : (other))
#define LESSER(one, other) ((one) < (other) ? (one) : (other))
#define ROUNDING 4e-6f /* of scores in single precision, and of ties */

enum { LANES = 8, CACHE_LINE = 64, AHEAD = 8, QUERY_STEPS = 8191, AT_ONCE = 512, BATCH = 32,
       NEAR = 50 };

/* Whole numbers, whose sum compilers may take in any order. */
INLINE int32_t dot_code(const int8_t *code, const int16_t *query, Py_ssize_t dim)
{
    int32_t sum = 0;
    for (Py_ssize_t i = 0; i < dim; i++)
        sum += code[i] * query[i];
    return sum;
}

INLINE double sum_of(const double *lanes)
{
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

/* The product of two floats is exact in double precision; only the sums are rounded. */
INLINE double dot_exact(const float *vector, const float *query, Py_ssize_t dim)
{
    double lanes[LANES] = {0};
    Py_ssize_t i = 0;
    for (; i + LANES <= dim; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] += (double)vector[i + lane] * query[i + lane];
    double sum = sum_of(lanes);
    for (; i < dim; i++)
        sum += (double)vector[i] * query[i];
    return sum;
}

/* Into the second cache: more can be on the way there than to the first. */
INLINE void ask_for(const char *memory, Py_ssize_t bytes)
{
    for (Py_ssize_t byte = 0; byte < bytes; byte += CACHE_LINE)
        __builtin_prefetch(memory + byte, 0, 2);
}

/* A heap of the best scores so far, the least of them on top. */
INLINE void empty(float *heap, Py_ssize_t size)
{
    for (Py_ssize_t i = 0; i < size; i++)
        heap[i] = -INFINITY;
}

INLINE void sink(float *heap, Py_ssize_t size, Py_ssize_t place, float score)
{
    for (Py_ssize_t child; (child = 2 * place + 1) < size; place = child) {
        child += child + 1 < size && heap[child + 1] < heap[child];
        if (heap[child] >= score)
            break;
        heap[place] = heap[child];
    }
    heap[place] = score;
}

BY_PROCESSOR
static void rough_scores(const int8_t *codes, const float *scales, const int16_t *query,
                         float query_unit, Py_ssize_t dim, const int64_t *rows, Py_ssize_t count,
                         float *scores)
{
    for (Py_ssize_t i = -AHEAD; i < count; i++) {
        if (i + AHEAD < count) {
            ask_for((const char *)(codes + rows[i + AHEAD] * dim), dim);
            ask_for((const char *)(scales + rows[i + AHEAD]), sizeof *scales);
        }
        if (i >= 0)
            scores[i] = query_unit * scales[rows[i]] * dot_code(codes + rows[i] * dim, query, dim);
    }
}

/* The same for all rows: of four at a time, the query is read but once. */
BY_PROCESSOR
static void all_rough_scores(const int8_t *codes, const float *scales, const int16_t *query,
                             float query_unit, Py_ssize_t dim, Py_ssize_t count, float *scores)
{
    Py_ssize_t row = 0;
    for (; row + 4 <= count; row += 4, codes += 4 * dim) {
        int32_t a = 0, b = 0, c = 0, d = 0;
        for (Py_ssize_t i = 0; i < dim; i++) {
            a += codes[i] * query[i];
            b += codes[dim + i] * query[i];
            c += codes[2 * dim + i] * query[i];
            d += codes[3 * dim + i] * query[i];
        }
        scores[row] = query_unit * scales[row] * a;
        scores[row + 1] = query_unit * scales[row + 1] * b;
        scores[row + 2] = query_unit * scales[row + 2] * c;
        scores[row + 3] = query_unit * scales[row + 3] * d;
    }
    for (; row < count; row++, codes += dim)
        scores[row] = query_unit * scales[row] * dot_code(codes, query, dim);
}

BY_PROCESSOR
static void exact_scores(const float *vectors, const float *query, Py_ssize_t dim,
                         const int64_t *rows, Py_ssize_t count, double *scores)
{
    for (Py_ssize_t i = -AHEAD; i < count; i++) {
        if (i + AHEAD < count)
            ask_for((const char *)(vectors + rows[i + AHEAD] * dim), dim * sizeof(float));
        if (i >= 0)
            scores[i] = dot_exact(vectors + rows[i] * dim, query, dim);
    }
}

/* Vectors of unit length, of vectors of any; which is the first that has none, or -1. */
BY_PROCESSOR
static Py_ssize_t scale_rows(const double *numbers, Py_ssize_t count, Py_ssize_t dim, float *unit)
{
    for (Py_ssize_t row = 0; row < count; row++, numbers += dim, unit += dim) {
        double lanes[LANES] = {0};
        for (Py_ssize_t i = 0; i < dim; i++)
            lanes[i % LANES] += numbers[i] * numbers[i];
        double length = sqrt(sum_of(lanes));
        if (!(length > 0 && length < INFINITY)) /* nor is NaN */
            return row;
        for (Py_ssize_t i = 0; i < dim; i++)
            unit[i] = (float)(numbers[i] / length);
    }
    return -1;
}

INLINE float largest_of(const float *numbers, Py_ssize_t count)
{
    float lanes[LANES] = {0}, largest = 0;
    Py_ssize_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] = GREATER(fabsf(numbers[i + lane]), lanes[lane]);
    for (; i < count; i++)
        largest = GREATER(fabsf(numbers[i]), largest);
    for (int lane = 0; lane < LANES; lane++)
        largest = GREATER(lanes[lane], largest);
    return largest;
}

/* Codes of a vector, and how far from it they are. */
BY_PROCESSOR
static double encode_row(const float *vector, Py_ssize_t dim, int8_t *code, float *scale)
{
    float largest = largest_of(vector, dim);
    *scale = largest / 127;
    float steps = largest > 0 ? 127 / largest : 0;
    double distance = 0;
    for (Py_ssize_t i = 0; i < dim; i++) {
        float rounded = rintf(vector[i] * steps);
        double off = vector[i] - (double)*scale * rounded;
        code[i] = (int8_t)rounded;
        distance += off * off;
    }
    return sqrt(distance);
}

/* A query as whole numbers, so small that no sum of products overflows; their unit, and how far
 * they are from it. */
BY_PROCESSOR
static float round_query(const float *query, Py_ssize_t dim, int16_t *rounded, float *error)
{
    float largest = largest_of(query, dim);
    float steps = LESSER(QUERY_STEPS, INT32_MAX / 127 / (dim + 1)), unit = largest / steps;
    for (Py_ssize_t i = 0; i < dim; i++)
        rounded[i] = largest > 0 ? (int16_t)rintf(query[i] / largest * steps) : 0;
    double lanes[LANES] = {0};
    for (Py_ssize_t i = 0; i < dim; i++) {
        double off = query[i] - (double)unit * rounded[i];
        lanes[i % LANES] += off * off;
    }
    *error = sqrt(sum_of(lanes));
    return unit;
}

/* --- from Python */

#define FLOAT "f"
#define DOUBLE "d"
#define CODE "b"
#define VALUE "i"
#define BOOL "?"
#define ROW (sizeof(long) == sizeof(int64_t) ? "lq" : "q")
#define ANY_ROW "ilq" /* of 4 or 8 bytes */

typedef struct {
    PyObject *source;
    const char *kinds; /* of the module struct, in any of which the numbers may be */
    int dimensions;
    int is_written;
    Py_buffer buffer;
} Array;

static int open_arrays(Array *arrays, int count)
{
    int opened = 0;
    for (; opened < count; opened++) {
        Array *array = arrays + opened;
        int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (array->is_written ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(array->source, &array->buffer, flags) < 0)
            break;
        const char *kind = array->buffer.format;
        if (!kind || !kind[0] || kind[1] || !strchr(array->kinds, kind[0]) ||
            array->buffer.ndim != array->dimensions) {
            PyBuffer_Release(&array->buffer);
            PyErr_Format(PyExc_ValueError, "array %d has another type or shape", opened);
            break;
        }
    }
    if (opened == count)
        return 0;
    while (opened--)
        PyBuffer_Release(&arrays[opened].buffer);
    return -1;
}

static void close_arrays(Array *arrays, int count)
{
    while (count--)
        PyBuffer_Release(&arrays[count].buffer);
}

static int are_within(const int64_t *rows, Py_ssize_t count, Py_ssize_t end)
{
    int is_outside = end < 0;
    for (Py_ssize_t i = 0; i < count; i++)
        is_outside |= (uint64_t)rows[i] >= (uint64_t)end; /* below 0, it is very large */
    return !is_outside;
}

/* How far below the last rough score somebody may be, and be among the nearest all the same: both
 * scores may be off, in opposite directions; all vectors are of unit length. */
INLINE float slack_of(float error, float query_error)
{
    return 2 * (error + (1 + error) * query_error) + ROUNDING;
}

static PyObject *encode(PyObject *self, PyObject *arguments)
{
    Array a[] = {{.kinds = FLOAT, .dimensions = 2},
                 {.kinds = CODE, .dimensions = 2, .is_written = 1},
                 {.kinds = FLOAT, .dimensions = 1, .is_written = 1}};
    if (!PyArg_ParseTuple(arguments, "OOO", &a[0].source, &a[1].source, &a[2].source) ||
        open_arrays(a, 3) < 0)
        return NULL;
    Py_ssize_t count = a[0].buffer.shape[0], dim = a[0].buffer.shape[1];
    PyObject *result = NULL;
    if (a[1].buffer.shape[0] != count || a[1].buffer.shape[1] != dim ||
        a[2].buffer.shape[0] != count) {
        PyErr_SetString(PyExc_ValueError, "the arrays differ in length");
    } else {
        double farthest = 0;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t row = 0; row < count; row++) {
            double distance = encode_row((const float *)a[0].buffer.buf + row * dim, dim,
                                         (int8_t *)a[1].buffer.buf + row * dim,
                                         (float *)a[2].buffer.buf + row);
            farthest = GREATER(farthest, distance);
        }
        Py_END_ALLOW_THREADS
        result = PyFloat_FromDouble(farthest);
    }
    close_arrays(a, 3);
    return result;
}

static PyObject *scale(PyObject *self, PyObject *arguments)
{
    Array a[] = {{.kinds = DOUBLE, .dimensions = 2},
                 {.kinds = FLOAT, .dimensions = 2, .is_written = 1}};
    if (!PyArg_ParseTuple(arguments, "OO", &a[0].source, &a[1].source) || open_arrays(a, 2) < 0)
        return NULL;
    Py_ssize_t count = a[0].buffer.shape[0], dim = a[0].buffer.shape[1], refused = -1;
    PyObject *result = NULL;
    if (a[1].buffer.shape[0] != count || a[1].buffer.shape[1] != dim) {
        PyErr_SetString(PyExc_ValueError, "the arrays differ in length");
    } else {
        Py_BEGIN_ALLOW_THREADS
        refused = scale_rows(a[0].buffer.buf, count, dim, a[1].buffer.buf);
        Py_END_ALLOW_THREADS
        result = PyLong_FromSsize_t(refused);
    }
    close_arrays(a, 2);
    return result;
}

static PyObject *dots(PyObject *self, PyObject *arguments)
{
    Array a[] = {{.kinds = FLOAT, .dimensions = 2},
                 {.kinds = FLOAT, .dimensions = 1},
                 {.kinds = ROW, .dimensions = 1},
                 {.kinds = DOUBLE, .dimensions = 1, .is_written = 1}};
    if (!PyArg_ParseTuple(arguments, "OOOO", &a[0].source, &a[1].source, &a[2].source,
                          &a[3].source) ||
        open_arrays(a, 4) < 0)
        return NULL;
    Py_ssize_t dim = a[0].buffer.shape[1], count = a[2].buffer.shape[0];
    PyObject *result = NULL;
    if (a[1].buffer.shape[0] != dim || a[3].buffer.shape[0] != count) {
        PyErr_SetString(PyExc_ValueError, "the arrays differ in length");
    } else if (!are_within(a[2].buffer.buf, count, a[0].buffer.shape[0])) {
        PyErr_SetString(PyExc_IndexError, "there is no such row");
    } else {
        Py_BEGIN_ALLOW_THREADS
        exact_scores(a[0].buffer.buf, a[1].buffer.buf, dim, a[2].buffer.buf, count,
                     a[3].buffer.buf);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    close_arrays(a, 4);
    return result;
}

/* A condition, in so many parts: a column of yes and no; or one of codes, and which of these are
 * allowed; or one of numbers, the least and the most of them; or codes, which of these are allowed,
 * numbers, and which of those are allowed as well, ascending. */
enum { MASK = 1, CODES = 2, BOUNDS = 3, CODES_OR_NUMBERS = 4 };

typedef struct {
    Array arrays[CODES_OR_NUMBERS];
    int opened, parts;
    double least, most;
    const double *numbers, *amounts;
    const int32_t *codes;
    const uint8_t *allowed;
    size_t known;
    Py_ssize_t amount_count;
} Test;

/* The place of the first number that is not below one. */
INLINE Py_ssize_t first_from(double number, const double *ascending, Py_ssize_t count)
{
    Py_ssize_t low = 0, high = count;
    while (low < high) {
        Py_ssize_t middle = (low + high) / 2;
        if (ascending[middle] < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

INLINE int is_among(double number, const double *ascending, Py_ssize_t count)
{
    Py_ssize_t place = first_from(number, ascending, count);
    return place < count && ascending[place] == number;
}

INLINE int is_met(const Test *test, int parts, int64_t row)
{
    if (parts == MASK)
        return test->allowed[row] != 0;
    if (parts == BOUNDS)
        return (test->numbers[row] >= test->least) & (test->numbers[row] <= test->most);
    size_t code = (size_t)test->codes[row]; /* below 0, it is very large */
    int is_allowed = code < test->known && test->allowed[code];
    if (parts == CODES)
        return is_allowed;
    return is_allowed || is_among(test->numbers[row], test->amounts, test->amount_count);
}

/* Which of some rows, from the first on, meet one condition. Most often none of eight do. */
INLINE Py_ssize_t find_by(const Test *test, int parts, int64_t first, Py_ssize_t count,
                          int64_t *found)
{
    uint8_t met[AT_ONCE] = {0};
    for (Py_ssize_t i = 0; i < count; i++)
        met[i] = (uint8_t)is_met(test, parts, first + i);
    Py_ssize_t kept = 0;
    for (Py_ssize_t i = 0; i < count; i += 8) {
        uint64_t eight;
        memcpy(&eight, met + i, sizeof eight);
        if (eight)
            for (Py_ssize_t j = i; j < LESSER(i + 8, count); j++) {
                found[kept] = first + j;
                kept += met[j];
            }
    }
    return kept;
}

/* Of some places, those whose rows meet a condition; without rows, places are rows. */
INLINE Py_ssize_t keep_by(const Test *test, int parts, const int64_t *rows, int64_t *places,
                          Py_ssize_t count)
{
    Py_ssize_t kept = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        int64_t place = places[i];
        places[kept] = place;
        kept += is_met(test, parts, rows ? rows[place] : place);
    }
    return kept;
}

/* CALL has to be inlined for each kind of condition, so that its loop does not ask for the kind. */
#define BY_PARTS(test, CALL, ...)                                                 \
    ((test)->parts == MASK     ? CALL(test, MASK, __VA_ARGS__)                    \
     : (test)->parts == CODES  ? CALL(test, CODES, __VA_ARGS__)                   \
     : (test)->parts == BOUNDS ? CALL(test, BOUNDS, __VA_ARGS__)                  \
                               : CALL(test, CODES_OR_NUMBERS, __VA_ARGS__))

static Py_ssize_t keep(const Test *tests, Py_ssize_t test_count, const int64_t *rows,
                       int64_t *places, Py_ssize_t count)
{
    for (const Test *test = tests; test < tests + test_count; test++)
        count = BY_PARTS(test, keep_by, rows, places, count);
    return count;
}

/* The same for all conditions. */
BY_PROCESSOR
static Py_ssize_t find(const Test *tests, Py_ssize_t test_count, int64_t first, Py_ssize_t count,
                       int64_t *found)
{
    if (test_count) {
        count = BY_PARTS(tests, find_by, first, count, found);
        return keep(tests + 1, test_count - 1, NULL, found, count);
    }
    for (Py_ssize_t row = 0; row < count; row++)
        found[row] = first + row;
    return count;
}

static int open_test(PyObject *condition, Test *test)
{
    static const char *const kinds[][CODES_OR_NUMBERS + 1] = {
        [MASK] = {BOOL},
        [CODES] = {VALUE, BOOL},
        [BOUNDS] = {DOUBLE},
        [CODES_OR_NUMBERS] = {VALUE, BOOL, DOUBLE, DOUBLE},
    };
    test->parts = PyTuple_Check(condition) ? (int)PyTuple_Size(condition) : 0;
    if (test->parts < MASK || test->parts > CODES_OR_NUMBERS) {
        PyErr_SetString(PyExc_ValueError, "a condition is a tuple of one to four parts");
        return -1;
    }
    int count = 0;
    for (; kinds[test->parts][count]; count++)
        test->arrays[count] = (Array){.source = PyTuple_GetItem(condition, count),
                                      .kinds = kinds[test->parts][count],
                                      .dimensions = 1};
    if (test->parts == BOUNDS) {
        test->least = PyFloat_AsDouble(PyTuple_GetItem(condition, 1));
        if (!PyErr_Occurred())
            test->most = PyFloat_AsDouble(PyTuple_GetItem(condition, 2));
        if (PyErr_Occurred())
            return -1;
    }
    if (open_arrays(test->arrays, count) < 0)
        return -1;
    test->opened = count;
    const Array *a = test->arrays;
    if (test->parts == MASK) {
        test->allowed = a[0].buffer.buf;
    } else if (test->parts == BOUNDS) {
        test->numbers = a[0].buffer.buf;
    } else {
        test->codes = a[0].buffer.buf;
        test->allowed = a[1].buffer.buf;
        test->known = a[1].buffer.shape[0];
    }
    if (test->parts == CODES_OR_NUMBERS) {
        test->numbers = a[2].buffer.buf;
        test->amounts = a[3].buffer.buf;
        test->amount_count = a[3].buffer.shape[0];
    }
    return 0;
}

static void close_tests(Test *tests, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        close_arrays(tests[i].arrays, tests[i].opened);
    free(tests);
}

/* The tests that a list of conditions asks for; lowers the rows to those of the shortest column. */
static Test *open_tests(PyObject *conditions, Py_ssize_t *count, Py_ssize_t *rows)
{
    *count = PyList_Size(conditions);
    Test *tests = calloc(*count + 1, sizeof *tests);
    if (!tests)
        return (Test *)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < *count; i++) {
        if (open_test(PyList_GetItem(conditions, i), tests + i) < 0) {
            close_tests(tests, i);
            return NULL;
        }
        for (int column = 0; column < tests[i].opened; column += 2)
            *rows = LESSER(*rows, tests[i].arrays[column].buffer.shape[0]);
    }
    return tests;
}

static PyObject *span(PyObject *self, PyObject *arguments)
{
    Array ascending = {.kinds = DOUBLE, .dimensions = 1};
    double low, high;
    if (!PyArg_ParseTuple(arguments, "Odd", &ascending.source, &low, &high) ||
        open_arrays(&ascending, 1) < 0)
        return NULL;
    Py_ssize_t count = ascending.buffer.shape[0];
    Py_ssize_t first = first_from(low, ascending.buffer.buf, count);
    Py_ssize_t end = count; /* nothing is above infinity */
    if (high != INFINITY)
        end = first_from(nextafter(high, INFINITY), ascending.buffer.buf, count);
    close_arrays(&ascending, 1);
    return Py_BuildValue("nn", first, end);
}

static PyObject *select_rows(PyObject *self, PyObject *arguments)
{
    Array a[] = {{.kinds = ROW, .dimensions = 1},
                 {.kinds = ROW, .dimensions = 1, .is_written = 1}};
    PyObject *conditions, *result = NULL;
    Py_ssize_t test_count, end = PY_SSIZE_T_MAX;
    Test *tests;
    if (!PyArg_ParseTuple(arguments, "O!OO", &PyList_Type, &conditions, &a[0].source,
                          &a[1].source) ||
        !(tests = open_tests(conditions, &test_count, &end)))
        return NULL;
    if (open_arrays(a, 2) == 0) {
        const int64_t *rows = a[0].buffer.buf;
        int64_t *places = a[1].buffer.buf;
        Py_ssize_t count = a[0].buffer.shape[0];
        if (a[1].buffer.shape[0] != count) {
            PyErr_SetString(PyExc_ValueError, "the arrays differ in length");
        } else if (!are_within(rows, count, end)) {
            PyErr_SetString(PyExc_IndexError, "there is no such row");
        } else {
            Py_BEGIN_ALLOW_THREADS
            for (Py_ssize_t place = 0; place < count; place++)
                places[place] = place;
            count = keep(tests, test_count, rows, places, count);
            Py_END_ALLOW_THREADS
            result = PyLong_FromSsize_t(count);
        }
        close_arrays(a, 2);
    }
    close_tests(tests, test_count);
    return result;
}

/* --- lists */

/* Scores of lists, in groups, and the best of each group: who wants the best of all need not look at
 * many. One that is not offered, or not any more, has a score below all others. */
enum { GROUP = 32 };

typedef struct {
    float *scores, *best;
    Py_ssize_t groups;
} Order;

INLINE float best_of_group(const float *scores)
{
    float lanes[LANES], best = -INFINITY;
    empty(lanes, LANES);
    for (int i = 0; i < GROUP; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] = GREATER(scores[i + lane], lanes[lane]);
    for (int lane = 0; lane < LANES; lane++)
        best = GREATER(lanes[lane], best);
    return best;
}

BY_PROCESSOR
static void find_best(Order *order)
{
    for (Py_ssize_t group = 0; group < order->groups; group++)
        order->best[group] = best_of_group(order->scores + group * GROUP);
}

static float best_score(const Order *order)
{
    float best = -INFINITY;
    for (Py_ssize_t group = 0; group < order->groups; group++)
        best = GREATER(order->best[group], best);
    return best;
}

/* The list that has the best score, which is not offered again. */
static Py_ssize_t take(Order *order, float best)
{
    Py_ssize_t group = 0;
    while (order->best[group] != best)
        group++;
    Py_ssize_t list = group * GROUP;
    while (order->scores[list] != best)
        list++;
    order->scores[list] = -INFINITY;
    order->best[group] = best_of_group(order->scores + group * GROUP);
    return list;
}

/* Coded vectors. */
typedef struct {
    const int8_t *codes;
    const float *scales;
    float error;
} Coded;

typedef struct {
    /* What is asked. */
    const int16_t *query;
    float query_unit, query_error, least;
    Py_ssize_t dim, wanted, most_tried;
    uint64_t *named; /* a bit for each user here: who is to be compared; NULL: everybody */
    int64_t named_count;
    const Test *tests;
    Py_ssize_t test_count;
    const int64_t *excluded; /* ascending */
    Py_ssize_t excluded_count;
    /* What there is. */
    Coded lists, users;
    int64_t first, end; /* rows of the users */
    Py_ssize_t list_count, limit_count;
    const float *limits; /* by a list's score, from -1 to 1 in equal steps */
    const int64_t *starts;
    /* What was found. */
    uint8_t *seen;
    int64_t *rows; /* counted from the first user here when they are compared */
    float *scores, *heap;
    Py_ssize_t room, found, compared, near_found;
    int64_t tried, near_tried, ahead;
} Look;

/* The best score that anybody is expected to have in lists of this score, or of a lower one. */
INLINE float limit_of(const Look *look, float score)
{
    Py_ssize_t last = look->limit_count - 1;
    float part = (score + slack_of(look->lists.error, look->query_error) / 2 + 1) / 2;
    Py_ssize_t step = (Py_ssize_t)ceil(LESSER(GREATER(part, 0), 1) * (double)last);
    return look->limits[LESSER(step, last)];
}

/* Who is below it is not among the nearest. */
INLINE float worth_finding(const Look *look)
{
    return GREATER(look->least, look->heap[0] - slack_of(look->users.error, look->query_error));
}

/* Leave out who is excluded, of rows from one on; both are ascending. */
static Py_ssize_t without(const Look *look, int64_t *rows, Py_ssize_t count)
{
    Py_ssize_t low = 0, high = look->excluded_count, kept = 0;
    if (!count || !high)
        return count;
    while (low < high) {
        Py_ssize_t middle = (low + high) / 2;
        if (look->excluded[middle] < rows[0])
            low = middle + 1;
        else
            high = middle;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        while (low < look->excluded_count && look->excluded[low] < rows[i])
            low++;
        rows[kept] = rows[i];
        kept += low == look->excluded_count || look->excluded[low] != rows[i];
    }
    return kept;
}

/* Room for some more rows; false without memory. */
static int make_room(Look *look, Py_ssize_t more)
{
    if (look->room - look->found >= more)
        return 1;
    Py_ssize_t room = 2 * look->room + more;
    int64_t *rows = realloc(look->rows, room * sizeof *rows);
    look->rows = rows ? rows : look->rows;
    float *scores = realloc(look->scores, room * sizeof *scores);
    look->scores = scores ? scores : look->scores;
    if (!rows || !scores)
        return 0;
    look->room = room;
    return 1;
}

/* Of some rows from one on, those who were named and qualify; false without memory. */
static int find_named(Look *look, int64_t row, int64_t count)
{
    if (!make_room(look, LESSER(count, look->named_count)))
        return 0;
    int64_t *found = look->rows + look->found, bit = row - look->first, end = bit + count;
    Py_ssize_t named = 0;
    for (int64_t next; bit < end; bit = next) {
        next = LESSER((bit / 64 + 1) * 64, end);
        uint64_t bits = look->named[bit / 64] >> bit % 64;
        if (next % 64)
            bits &= ((uint64_t)1 << (next - bit)) - 1;
        for (; bits; bits &= bits - 1)
            found[named++] = look->first + bit + __builtin_ctzll(bits);
    }
    named = keep(look->tests, look->test_count, NULL, found, named);
    look->found += without(look, found, named);
    return 1;
}

/* Who qualifies, of some rows from one on; false without memory. */
static int find_from(Look *look, int64_t row, int64_t count)
{
    if (look->named)
        return find_named(look, row, count);
    for (Py_ssize_t some; count; row += some, count -= some) {
        some = LESSER(count, AT_ONCE);
        if (!make_room(look, some))
            return 0;
        int64_t *found = look->rows + look->found;
        Py_ssize_t more = find(look->tests, look->test_count, row, some, found);
        look->found += without(look, found, more);
    }
    return 1;
}

static int find_in_list(Look *look, Py_ssize_t list)
{
    int64_t size = look->starts[list + 1] - look->starts[list];
    if (!find_from(look, look->starts[list], size))
        return 0;
    look->tried += size;
    look->seen[list] = 1;
    if (look->near_tried < NEAR) {
        look->near_tried = look->tried;
        look->near_found = look->found;
    }
    return 1;
}

static void compare_found(Look *look)
{
    rough_scores(look->users.codes, look->users.scales, look->query, look->query_unit, look->dim,
                 look->rows + look->compared, look->found - look->compared,
                 look->scores + look->compared);
    for (; look->compared < look->found; look->compared++)
        if (look->scores[look->compared] > look->heap[0])
            sink(look->heap, look->wanted, 0, look->scores[look->compared]);
}

/* Lists that were not seen, the nearest first, until who is in the next ones is not near enough.
 * False without memory. */
static int walk(Look *look, Order *order)
{
    for (Py_ssize_t list = 0; list < order->groups * GROUP; list++)
        if (list >= look->list_count || look->seen[list])
            order->scores[list] = -INFINITY;
    find_best(order);
    empty(look->heap, look->wanted);
    float best = best_score(order);
    while (best > -INFINITY && look->tried < look->most_tried &&
           limit_of(look, best) >= worth_finding(look)) {
        if (!find_in_list(look, take(order, best)))
            return 0;
        if (look->found - look->compared >= BATCH || look->compared < look->wanted)
            compare_found(look);
        best = best_score(order);
    }
    compare_found(look);
    int is_settled = best == -INFINITY || limit_of(look, best) < worth_finding(look);
    for (Py_ssize_t list = 0; list < look->list_count && !is_settled; list++)
        if (order->scores[list] > -INFINITY &&
            limit_of(look, order->scores[list]) >= worth_finding(look))
            look->ahead += look->starts[list + 1] - look->starts[list];
    return 1;
}

static int are_stretches(const int64_t *starts, Py_ssize_t count, Py_ssize_t end)
{
    int is_wrong = starts[0] < 0 || starts[count] > end;
    for (Py_ssize_t i = 0; i < count; i++)
        is_wrong |= starts[i] > starts[i + 1];
    return !is_wrong;
}

/* Of those who were compared, by their codes, those who may be among the nearest. */
static void keep_likely(Look *look)
{
    float least = GREATER(look->least, look->heap[0]);
    least -= slack_of(look->users.error, look->query_error);
    look->found = 0;
    for (Py_ssize_t i = 0; i < look->compared; i++) {
        look->rows[look->found] = look->rows[i];
        look->found += look->scores[i] >= least;
    }
}

/* Of those, by their exact scores, those who are, and who ties with the last. */
static void keep_nearest(Look *look, double *exact)
{
    empty(look->heap, LESSER(look->wanted, look->found + 1));
    for (Py_ssize_t i = 0; i < look->found && look->found > look->wanted; i++)
        if (exact[i] > look->heap[0])
            sink(look->heap, look->wanted, 0, exact[i]);
    double least = GREATER(look->least, look->heap[0]) - ROUNDING;
    Py_ssize_t kept = 0;
    for (Py_ssize_t i = 0; i < look->found; i++) {
        look->rows[kept] = look->rows[i] + look->first; /* as rows of all users again */
        exact[kept] = exact[i];
        kept += exact[i] >= least;
    }
    look->found = kept;
}

static int look_into_lists(Look *look)
{
    Order order = {.groups = look->list_count / GROUP + 1};
    order.scores = malloc(order.groups * (GROUP + 1) * sizeof *order.scores);
    if (!order.scores)
        return 0;
    order.best = order.scores + order.groups * GROUP;
    all_rough_scores(look->lists.codes, look->lists.scales, look->query, look->query_unit,
                     look->dim, look->list_count, order.scores);
    int is_done = walk(look, &order);
    free(order.scores);
    return is_done;
}

/* All the users who are here, or those among them who were named; false without memory. */
static int compare_all(Look *look)
{
    int64_t count = look->end - look->first;
    if (!find_from(look, look->first, count))
        return 0;
    look->tried = look->named ? look->named_count : count;
    look->near_tried = look->tried;
    look->near_found = look->found;
    for (Py_ssize_t i = 0; i < look->found; i++)
        look->rows[i] -= look->first;
    if (look->found > look->wanted) {
        empty(look->heap, look->wanted);
        compare_found(look);
        return 1;
    }
    look->heap[0] = -INFINITY; /* there is no choice to make by codes */
    for (; look->compared < look->found; look->compared++)
        look->scores[look->compared] = INFINITY;
    return 1;
}

/* What a search finds: rows and their scores, as bytes; how many were tried and compared, and are
 * ahead; the share who qualify of those in the nearest lists that hold NEAR users, or of all. */
static PyObject *answer(Look *look, int (*search)(Look *), const float *vectors, const float *asked)
{
    look->wanted = LESSER(look->wanted, look->end - look->first + 1); /* then the heap is never full */
    int16_t *query = malloc((look->dim + 1) * sizeof *query);
    look->room = AT_ONCE;
    look->rows = malloc(look->room * sizeof *look->rows);
    look->scores = malloc(look->room * sizeof *look->scores);
    look->heap = malloc(look->wanted * sizeof *look->heap);
    double *exact = NULL;
    PyObject *result = NULL;
    if (query && look->rows && look->scores && look->heap) {
        Py_BEGIN_ALLOW_THREADS
        look->query_unit = round_query(asked, look->dim, query, &look->query_error);
        look->query = query;
        if (search(look)) {
            keep_likely(look);
            exact = malloc((look->found + 1) * sizeof *exact);
        }
        if (exact) {
            exact_scores(vectors, asked, look->dim, look->rows, look->found, exact);
            keep_nearest(look, exact);
        }
        Py_END_ALLOW_THREADS
    }
    if (exact)
        result = Py_BuildValue(
            "y#y#LnLd", look->rows, look->found * (Py_ssize_t)sizeof *look->rows, exact,
            look->found * (Py_ssize_t)sizeof *exact, (long long)look->tried, look->compared,
            (long long)look->ahead, GREATER(look->near_found, 0.5) / GREATER(look->near_tried, 1));
    else
        PyErr_NoMemory();
    free(exact);
    free(query);
    free(look->heap);
    free(look->rows);
    free(look->scores);
    return result;
}

/* What is asked, and of whom; whether it makes sense. */
enum { VECTORS, CODES_OF, SCALES, QUERY, OUT, ASKED };
#define ASKED_ARRAYS                                         \
    [VECTORS] = {.kinds = FLOAT, .dimensions = 2},           \
    [CODES_OF] = {.kinds = CODE, .dimensions = 2},           \
    [SCALES] = {.kinds = FLOAT, .dimensions = 1},            \
    [QUERY] = {.kinds = FLOAT, .dimensions = 1},             \
    [OUT] = {.kinds = ROW, .dimensions = 1}

/* A bit for each user here, set for those in some arrays: they are in order then, and none is there
 * twice. False on errors. */
static int set_named(Look *look, PyObject *parts)
{
    if (!PyList_Check(parts)) {
        PyErr_SetString(PyExc_TypeError, "rows must be a list of arrays, or None");
        return 0;
    }
    look->named = calloc((look->end - look->first) / 64 + 1, sizeof *look->named);
    if (!look->named)
        return PyErr_NoMemory() != NULL;
    for (Py_ssize_t i = 0; i < PyList_Size(parts); i++) {
        Array part = {.source = PyList_GetItem(parts, i), .kinds = ANY_ROW, .dimensions = 1};
        if (open_arrays(&part, 1) < 0)
            return 0;
        int is_short = part.buffer.itemsize == sizeof(int32_t);
        const void *rows = part.buffer.buf;
        for (Py_ssize_t j = 0; j < part.buffer.shape[0]; j++) {
            int64_t row = is_short ? ((const int32_t *)rows)[j] : ((const int64_t *)rows)[j];
            if (row < look->first || row >= look->end)
                continue;
            uint64_t *word = look->named + (row - look->first) / 64;
            uint64_t bit = (uint64_t)1 << (row - look->first) % 64;
            look->named_count += !(*word & bit);
            *word |= bit;
        }
        close_arrays(&part, 1);
    }
    return 1;
}

static int set_question(Look *look, const Array *a, PyObject *named)
{
    Py_ssize_t count = a[VECTORS].buffer.shape[0], dim = a[QUERY].buffer.shape[0];
    look->dim = dim;
    look->end = look->first + count;
    look->users.codes = a[CODES_OF].buffer.buf;
    look->users.scales = a[SCALES].buffer.buf;
    look->excluded = a[OUT].buffer.buf;
    look->excluded_count = a[OUT].buffer.shape[0];
    if (a[VECTORS].buffer.shape[1] != dim || a[CODES_OF].buffer.shape[1] != dim ||
        a[CODES_OF].buffer.shape[0] != count || a[SCALES].buffer.shape[0] != count ||
        look->wanted < 1) {
        PyErr_SetString(PyExc_ValueError, "the arrays differ in length, or none is wanted");
        return 0;
    }
    return named == Py_None || set_named(look, named);
}

static PyObject *look(PyObject *self, PyObject *arguments)
{
    enum { CENTRES = ASKED, CENTRE_SCALES, LIMITS, STARTS, SEEN, ARRAYS };
    Array a[ARRAYS] = {ASKED_ARRAYS,
                       [CENTRES] = {.kinds = CODE, .dimensions = 2},
                       [CENTRE_SCALES] = {.kinds = FLOAT, .dimensions = 1},
                       [LIMITS] = {.kinds = FLOAT, .dimensions = 1},
                       [STARTS] = {.kinds = ROW, .dimensions = 1},
                       [SEEN] = {.kinds = BOOL, .dimensions = 1, .is_written = 1}};
    Look look = {0};
    PyObject *conditions, *named, *result = NULL;
    Py_ssize_t end = PY_SSIZE_T_MAX;
    Test *tests;
    if (!PyArg_ParseTuple(arguments, "(OOfOOO)(OOOf)OOO!Onfn", &a[CENTRES].source,
                          &a[CENTRE_SCALES].source, &look.lists.error, &a[LIMITS].source,
                          &a[STARTS].source, &a[SEEN].source, &a[VECTORS].source,
                          &a[CODES_OF].source, &a[SCALES].source, &look.users.error, &named,
                          &a[QUERY].source, &PyList_Type, &conditions, &a[OUT].source,
                          &look.wanted, &look.least, &look.most_tried) ||
        !(tests = open_tests(conditions, &look.test_count, &end)))
        return NULL;
    if (open_arrays(a, ARRAYS) == 0) {
        Py_ssize_t lists = a[CENTRES].buffer.shape[0];
        look.tests = tests;
        look.lists.codes = a[CENTRES].buffer.buf;
        look.lists.scales = a[CENTRE_SCALES].buffer.buf;
        look.list_count = lists;
        look.limits = a[LIMITS].buffer.buf;
        look.limit_count = a[LIMITS].buffer.shape[0];
        look.starts = a[STARTS].buffer.buf;
        look.seen = a[SEEN].buffer.buf;
        if (set_question(&look, a, named)) {
            if (a[CENTRES].buffer.shape[1] != look.dim ||
                a[CENTRE_SCALES].buffer.shape[0] != lists ||
                a[STARTS].buffer.shape[0] != lists + 1 || a[SEEN].buffer.shape[0] != lists ||
                look.limit_count < 2) {
                PyErr_SetString(PyExc_ValueError, "the arrays of lists differ in length");
            } else if (!are_stretches(look.starts, lists, LESSER(end, look.end))) {
                PyErr_SetString(PyExc_IndexError, "there are no such lists");
            } else {
                result = answer(&look, look_into_lists, a[VECTORS].buffer.buf, a[QUERY].buffer.buf);
            }
        }
        free(look.named);
        close_arrays(a, ARRAYS);
    }
    close_tests(tests, look.test_count);
    return result;
}

static PyObject *compare(PyObject *self, PyObject *arguments)
{
    Array a[] = {ASKED_ARRAYS};
    Look look = {0};
    PyObject *conditions, *named, *result = NULL;
    Py_ssize_t first, end = PY_SSIZE_T_MAX;
    Test *tests;
    if (!PyArg_ParseTuple(arguments, "(OOOf)nOOO!Onf", &a[VECTORS].source, &a[CODES_OF].source,
                          &a[SCALES].source, &look.users.error, &first, &named, &a[QUERY].source,
                          &PyList_Type, &conditions, &a[OUT].source, &look.wanted, &look.least) ||
        !(tests = open_tests(conditions, &look.test_count, &end)))
        return NULL;
    if (open_arrays(a, ASKED) == 0) {
        look.tests = tests;
        look.first = first;
        if (first < 0 || first > end - a[VECTORS].buffer.shape[0])
            PyErr_SetString(PyExc_IndexError, "there are no such rows");
        else if (set_question(&look, a, named))
            result = answer(&look, compare_all, a[VECTORS].buffer.buf, a[QUERY].buffer.buf);
        free(look.named);
        close_arrays(a, ASKED);
    }
    close_tests(tests, look.test_count);
    return result;
}

/* --- users */

typedef struct {
    double score;
    PyObject *user;
} Match;

static int by_score_and_user(const void *one, const void *other)
{
    const Match *a = one, *b = other;
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return PyUnicode_Compare(a->user, b->user);
}

/* The users in some rows, but for those in which nobody is or that have no score; how many. They are
 * held, as others may let go of them while memory is taken. */
static Py_ssize_t name_rows(PyObject *users, const Array *a, Match *matches)
{
    const int64_t *rows = a[0].buffer.buf;
    const double *scores = a[1].buffer.buf;
    Py_ssize_t named = 0;
    for (Py_ssize_t i = 0; i < a[0].buffer.shape[0]; i++) {
        PyObject *user = PyList_GetItem(users, rows[i]);
        if (!user)
            break;
        if (user == Py_None || isnan(scores[i]))
            continue;
        if (!PyUnicode_Check(user)) {
            PyErr_SetString(PyExc_TypeError, "a user is text, or None");
            break;
        }
        matches[named++] = (Match){LESSER(GREATER(scores[i], -1), 1), Py_NewRef(user)};
    }
    return named;
}

/* One of them, of a type that has nothing but its items, such as a named tuple. */
static PyObject *as_tuple(PyTypeObject *type, newfunc new_tuple, const Match *match)
{
    PyObject *score = PyFloat_FromDouble(match->score);
    PyObject *pair = score ? PyTuple_Pack(2, match->user, score) : NULL;
    PyObject *arguments = pair ? PyTuple_Pack(1, pair) : NULL;
    PyObject *result = arguments ? new_tuple(type, arguments, NULL) : NULL;
    Py_XDECREF(arguments);
    Py_XDECREF(pair);
    Py_XDECREF(score);
    return result;
}

/* The first of them, as far as their scores are good enough. */
static PyObject *as_list(const Match *matches, Py_ssize_t count, double least, PyTypeObject *type)
{
    while (count && matches[count - 1].score < least)
        count--;
    newfunc new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    PyObject *result = PyList_New(count);
    for (Py_ssize_t i = 0; result && i < count; i++) {
        PyObject *match = as_tuple(type, new_tuple, matches + i);
        if (!match || PyList_SetItem(result, i, match) < 0)
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *rank(PyObject *self, PyObject *arguments)
{
    Array a[] = {{.kinds = ROW, .dimensions = 1}, {.kinds = DOUBLE, .dimensions = 1}};
    PyObject *users, *type, *result = NULL;
    Py_ssize_t wanted;
    double least;
    if (!PyArg_ParseTuple(arguments, "O!OOndO!", &PyList_Type, &users, &a[0].source, &a[1].source,
                          &wanted, &least, &PyType_Type, &type))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "a match is a kind of tuple");
        return NULL;
    }
    if (open_arrays(a, 2) < 0)
        return NULL;
    Py_ssize_t count = a[0].buffer.shape[0];
    Match *matches = malloc((count + 1) * sizeof *matches);
    if (a[1].buffer.shape[0] != count) {
        PyErr_SetString(PyExc_ValueError, "the arrays differ in length");
    } else if (!matches) {
        PyErr_NoMemory();
    } else {
        count = name_rows(users, a, matches);
        if (!PyErr_Occurred()) {
            qsort(matches, count, sizeof *matches, by_score_and_user);
            result = as_list(matches, LESSER(count, GREATER(wanted, 0)), least,
                             (PyTypeObject *)type);
        }
        while (count--)
            Py_DECREF(matches[count].user);
    }
    free(matches);
    close_arrays(a, 2);
    return result;
}

static PyMethodDef functions[] = {
    {"encode", encode, METH_VARARGS, "encode(vectors, codes, scales)"},
    {"scale", scale, METH_VARARGS, "scale(numbers, unit)"},
    {"span", span, METH_VARARGS, "span(ascending, low, high)"},
    {"select", select_rows, METH_VARARGS, "select(conditions, rows, places)"},
    {"look", look, METH_VARARGS,
     "look((centres, scales, error, limits, starts, seen), (vectors, codes, scales, error), rows, "
     "query, conditions, excluded, wanted, least, most_tried)"},
    {"compare", compare, METH_VARARGS,
     "compare((vectors, codes, scales, error), first, rows, query, conditions, excluded, wanted, "
     "least)"},
    {"dots", dots, METH_VARARGS, "dots(vectors, query, rows, scores)"},
    {"rank", rank, METH_VARARGS, "rank(users, rows, scores, wanted, least, match)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_scan",
    .m_doc = "The inner loops of a scan.",
    .m_size = 0,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__scan(void)
{
    return PyModule_Create(&module);
}
