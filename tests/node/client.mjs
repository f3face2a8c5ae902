// One call by a vendor's own client; what came of it, as one line of JSON.
// What to ask is said in ASKED: {sdk, way, url, token, body, headers, retries,
// timeout_ms: of each call, client_timeout_ms: of the client}.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const asked = JSON.parse(process.env.ASKED);
const client = new { openai: OpenAI, anthropic: Anthropic }[asked.sdk]({
  apiKey: asked.token,
  baseURL: asked.url,
  defaultHeaders: asked.headers,
  maxRetries: asked.retries ?? 0,
  ...(asked.client_timeout_ms ? { timeout: asked.client_timeout_ms } : {}),
});
const options = asked.timeout_ms ? { timeout: asked.timeout_ms } : {};

const told = (headers) =>
  Object.fromEntries([...headers].filter(([name]) => name.startsWith("x-scheduler-")));

const ways = {
  openai: {
    async plain(body) {
      const { data, response } = await client.chat.completions.create(body, options).withResponse();
      return { text: data.choices[0].message.content, headers: told(response.headers) };
    },
    async stream(body) {
      let text = "";
      for await (const chunk of await client.chat.completions.create({ ...body, stream: true }, options))
        text += chunk.choices[0]?.delta?.content ?? "";
      return { text };
    },
    async helper(body) {
      const stream = client.chat.completions.stream(body, options);
      let pieces = 0;
      stream.on("content", () => (pieces += 1));
      return { text: await stream.finalContent(), pieces };
    },
    async responses({ model, messages, max_tokens }) {
      const body = { model, input: messages[0].content, max_output_tokens: max_tokens };
      const stream = client.responses.stream(body, options);
      const answer = await client.responses.create(body, options);
      return { text: answer.output_text, streamed: (await stream.finalResponse()).output_text };
    },
    async models() {
      const names = [];
      for await (const each of client.models.list()) names.push(each.id);
      return { names };
    },
  },
  anthropic: {
    async plain(body) {
      const { data, response } = await client.messages.create(body, options).withResponse();
      return { text: data.content[0].text, headers: told(response.headers) };
    },
    async stream(body) {
      let text = "";
      for await (const event of await client.messages.create({ ...body, stream: true }, options))
        if (event.type === "content_block_delta") text += event.delta.text;
      return { text };
    },
    async helper(body) {
      const stream = client.messages.stream(body, options);
      let pieces = 0;
      stream.on("text", () => (pieces += 1));
      return { text: await stream.finalText(), pieces };
    },
  },
};

let outcome;
try {
  outcome = await ways[asked.sdk][asked.way](asked.body);
} catch (error) {
  const { name, status, message, code, type } = error;
  const headers = error.headers ? Object.fromEntries(error.headers) : undefined;
  outcome = { error: { kind: error.constructor.name, name, status, message, code, type } };
  outcome.error = { ...outcome.error, cause: error.cause?.message, body: error.error, headers };
}
console.log(JSON.stringify(outcome));
