/* Greedy decoding of a bundle with a growing cache, by the C API of ONNX Runtime and nothing else.
 *
 *     cc greedy.c -I HEADERS -o greedy libonnxruntime.so.1 -Wl,-rpath,'$ORIGIN'
 *     ./greedy BUNDLE/model.onnx COUNT END ID ID ...     prints the ids of the new tokens, until END
 *     DOGE_LIBRARY=libdoge_export.so ./greedy ...        the same on our kernels
 *
 * Names and shapes of the cache are read from the graph. Logits and cache must be float32, as those of int8
 * and int4 bundles are too. */

#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 512, TEXT = 128 };

static const OrtApi* ort;

static void check(OrtStatus* status) {
  if (status == NULL) return;
  fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
  exit(2);
}

/* A tensor of int64 that starts at `data`, of shape [1, count]. */
static OrtValue* integers(OrtMemoryInfo* memory, int64_t* data, int64_t count) {
  const int64_t shape[2] = {1, count};
  OrtValue* value = NULL;
  check(ort->CreateTensorWithDataAsOrtValue(memory, data, (size_t)count * sizeof *data, shape, 2,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &value));
  return value;
}

/* An empty cache tensor: the input's shape with a batch of 1 and a past of 0. */
static OrtValue* empty(const OrtSession* session, OrtAllocator* allocator, size_t input) {
  OrtTypeInfo* type = NULL;
  const OrtTensorTypeAndShapeInfo* tensor = NULL;
  int64_t shape[4];
  OrtValue* value = NULL;
  check(ort->SessionGetInputTypeInfo(session, input, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &tensor));
  check(ort->GetDimensions(tensor, shape, 4));
  shape[0] = 1;
  shape[2] = 0;
  check(ort->CreateTensorAsOrtValue(allocator, shape, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
  ort->ReleaseTypeInfo(type);
  return value;
}

/* The token with the largest logit of the last position; of equal ones the first. */
static int64_t best(OrtValue* logits) {
  OrtTensorTypeAndShapeInfo* info = NULL;
  int64_t shape[3];
  void* data = NULL;
  check(ort->GetTensorTypeAndShape(logits, &info));
  check(ort->GetDimensions(info, shape, 3));
  check(ort->GetTensorMutableData(logits, &data));
  ort->ReleaseTensorTypeAndShapeInfo(info);
  const float* last = (const float*)data + (shape[1] - 1) * shape[2];
  int64_t found = 0;
  for (int64_t i = 1; i < shape[2]; i++)
    if (last[i] > last[found]) found = i;
  return found;
}

int main(int argc, char** argv) {
  if (argc < 5) return fprintf(stderr, "usage: greedy MODEL COUNT END ID ID ...\n"), 2;
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (ort == NULL) return fprintf(stderr, "This libonnxruntime is older than the headers.\n"), 2;
  OrtEnv* env = NULL;
  OrtSessionOptions* options = NULL;
  OrtSession* session = NULL;
  OrtMemoryInfo* memory = NULL;
  OrtAllocator* allocator = NULL;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "greedy", &env));
  check(ort->CreateSessionOptions(&options));
  const char* library = getenv("DOGE_LIBRARY");
  if (library != NULL) check(ort->RegisterCustomOpsLibrary_V2(options, library));
  check(ort->CreateSession(env, argv[1], options, &session));
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  check(ort->GetAllocatorWithDefaultOptions(&allocator));

  size_t inputs = 0;
  check(ort->SessionGetInputCount(session, &inputs));
  const char* taken[MOST] = {"input_ids", "attention_mask", "position_ids"};
  const char* given[MOST] = {"logits"};
  OrtValue* values[MOST] = {NULL};
  static char names[MOST][TEXT];
  size_t caches = 0;
  for (size_t i = 0; i < inputs && caches + 3 < MOST; i++) {
    char* name = NULL;
    check(ort->SessionGetInputName(session, i, allocator, &name));
    if (strncmp(name, "past_key_values.", 16) == 0) { /* past_key_values.0.key comes back as present.0.key */
      snprintf(names[caches], TEXT, "present.%s", name + 16);
      given[1 + caches] = names[caches];
      values[3 + caches] = empty(session, allocator, i);
      taken[3 + caches++] = strdup(name);
    }
    check(ort->AllocatorFree(allocator, name));
  }

  const int count = atoi(argv[2]), end = atoi(argv[3]), prompt = argc - 4;
  const size_t most = (size_t)(prompt + count) + 1;
  int64_t* ids = malloc(most * sizeof *ids);
  int64_t* mask = malloc(most * sizeof *mask);
  int64_t* positions = malloc(most * sizeof *positions);
  for (size_t i = 0; i < most; i++) mask[i] = 1, positions[i] = (int64_t)i;
  for (int i = 0; i < prompt; i++) ids[i] = atoll(argv[4 + i]);
  int past = 0, length = prompt;
  for (int made = 0; made < count; made++) {
    OrtValue* results[MOST] = {NULL};
    values[0] = integers(memory, ids + past, length - past);
    values[1] = integers(memory, mask, length); /* of all tokens so far */
    values[2] = integers(memory, positions + past, length - past);
    check(ort->Run(session, NULL, taken, (const OrtValue* const*)values, 3 + caches, given, 1 + caches,
                   results));
    for (size_t i = 0; i < 3 + caches; i++) ort->ReleaseValue(values[i]);
    for (size_t i = 0; i < caches; i++) values[3 + i] = results[1 + i];
    past = length;
    ids[length++] = best(results[0]);
    ort->ReleaseValue(results[0]);
    printf("%lld%c", (long long)ids[past], made + 1 < count && ids[past] != end ? ' ' : '\n');
    if (ids[past] == end) break;
  }
  return 0; /* the process ends, and gives everything back */
}
