// openai, in Node.

import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the weather in Bern?" }];
const schema = {
  type: "object",
  properties: { now: { type: "boolean" } },
  required: ["now"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "weather", parameters: schema } };

function hold(fact) {
  if (!fact) throw new Error("not what the documentation shows");
}

const calls = {
  "chat.completions.create": async () => {
    const made = await client.chat.completions.create({ model, messages, max_completion_tokens: 8 });
    hold(made.choices[0].message.role === "assistant");
  },
  "chat.completions.create, stream": async () => {
    let role = "";
    const stream = await client.chat.completions.create({ model, messages, max_tokens: 8, stream: true });
    for await (const chunk of stream) role ||= chunk.choices[0]?.delta?.role;
    hold(role === "assistant");
  },
  "chat.completions.stream, finalContent": async () => {
    const stream = client.chat.completions.stream({ model, messages, max_tokens: 8 });
    hold(typeof (await stream.finalContent()) === "string");
  },
  "chat.completions.parse, response_format json_schema": async () => {
    const format = { type: "json_schema", json_schema: { name: "weather", schema, strict: true } };
    const asked = { model, messages, max_tokens: 60, response_format: format };
    const made = await client.chat.completions.parse(asked);
    hold("now" in JSON.parse(made.choices[0].message.content));
  },
  "chat.completions.create, tools": async () => {
    await client.chat.completions.create({ model, messages, max_tokens: 20, tools: [tool] });
  },
  "chat.completions.create, tool_choice required": async () => {
    const asked = { model, messages, max_tokens: 100, tools: [tool], tool_choice: "required" };
    const made = await client.chat.completions.create(asked);
    hold(made.choices[0].message.tool_calls[0].function.name === "weather");
  },
  "completions.create, logprobs": async () => {
    const made = await client.completions.create({ model, prompt: "The union", max_tokens: 4, logprobs: 1 });
    hold(made.choices[0].logprobs.tokens.length > 0);
  },
  "responses.create, and as a stream": async () => {
    const made = await client.responses.create({ model, input: "Good morning", max_output_tokens: 16 });
    hold(typeof made.output_text === "string");
    const asked = { model, input: "Good morning", max_output_tokens: 16, stream: true };
    const types = [];
    for await (const event of await client.responses.create(asked)) types.push(event.type);
    hold(types[0] === "response.created");
  },
  "models.list": async () => {
    const names = [];
    for await (const each of client.models.list()) names.push(each.id);
    hold(names.includes(model));
  },
};

for (const [call, ask] of Object.entries(calls)) {
  let error = "";
  try {
    await ask();
  } catch (raised) {
    error = `${raised}`.replace(/\s+/g, " ").slice(0, 600);
  }
  console.log(JSON.stringify({ call, error }));
}
