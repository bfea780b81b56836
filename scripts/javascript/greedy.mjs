// Greedy decoding of a bundle with a growing cache, in Node (onnxruntime-node) and in a browser
// (onnxruntime-web, browser.html).
//
//     npm install onnxruntime-node
//     node greedy.mjs BUNDLE COUNT ID ID ...        prints the ids of the new tokens
//
// It needs no library of ours: the graph carries the definition of its operators. Token ids come from the
// bundle's tokenizer.json; packages such as @huggingface/tokenizers read it.

// The index of the largest logit of the last token; of equal ones the first.
function best(logits) {
  const width = logits.dims[2];
  const last = logits.data.subarray(logits.data.length - width);
  // Without Float16Array a float16 tensor is a Uint16Array: its bits are put in the order of the numbers.
  const order = last instanceof Uint16Array ? (x) => (x & 0x8000 ? -(x & 0x7fff) : x) : (x) => x;
  let found = 0;
  for (let i = 1; i < width; i += 1) if (order(last[i]) > order(last[found])) found = i;
  return found;
}

// The ids of up to `count` new tokens; `ends` are the ids that end a text.
// `ort` is the module of onnxruntime, `manifest` what doge_export.json holds.
export async function greedy(ort, session, manifest, prompt, count, ends) {
  const { kind, dtype, layers, inputs, outputs, kv_heads: heads, head_dim: width } = manifest.cache;
  if (kind !== 'growing') throw new Error(`This program wants a growing cache; the bundle's is ${kind}.`);
  const int64 = (values) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
  const cache = {};
  for (const name of inputs) cache[name] = new ort.Tensor(dtype, [], [1, heads, 0, width]);
  const made = [];
  let tokens = prompt;
  let past = 0;
  while (made.length < count) {
    const results = await session.run({
      input_ids: int64(tokens),
      attention_mask: int64(Array(past + tokens.length).fill(1)), // of all tokens so far
      position_ids: int64(tokens.map((_, i) => past + i)), // of the new ones
      ...cache,
    });
    past += tokens.length;
    inputs.forEach((name, i) => { cache[name] = results[outputs[i]]; });
    const token = best(results.logits);
    made.push(token);
    if (ends.includes(token)) break;
    tokens = [token];
  }
  return made;
}

// As a program, in Node. ORT names another package than onnxruntime-node.
if (globalThis.process?.argv?.[1]?.endsWith('greedy.mjs')) {
  const [folder, count, ...prompt] = process.argv.slice(2);
  const { readFile } = await import('node:fs/promises');
  const { createRequire } = await import('node:module');
  const { join, resolve } = await import('node:path');
  const read = async (name) => JSON.parse(await readFile(join(folder, name), 'utf8'));
  const ort = createRequire(resolve('package.json'))(process.env.ORT ?? 'onnxruntime-node');
  const [manifest, generation] = [await read('doge_export.json'), await read('generation_config.json')];
  const session = await ort.InferenceSession.create(join(folder, 'model.onnx'));
  const ends = [generation.eos_token_id ?? []].flat();
  console.log((await greedy(ort, session, manifest, prompt.map(Number), Number(count), ends)).join(' '));
}
