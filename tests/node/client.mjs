// One call by a vendor's own client; what came of it, as one line of JSON.
// What to ask is said in ASKED: {sdk, way, url, token, body, headers, retries,
// timeout_ms: of each call, client_timeout_ms: of the client}.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI, { toFile } from "openai";

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

const pause = () => new Promise((resolve) => setTimeout(resolve, 50));

const ways = {
  openai: {
    async batch(body) {
      const url = "/v1/chat/completions";
      const lines = ["a", "b"].map((custom_id) => JSON.stringify({ custom_id, method: "POST", url, body }));
      const file = await toFile(Buffer.from(lines.join("\n")), "in.jsonl");
      const { id: input_file_id } = await client.files.create({ file, purpose: "batch" });
      let batch = await client.batches.create({ input_file_id, endpoint: url, completion_window: "24h" });
      while (batch.status !== "completed") {
        await pause();
        batch = await client.batches.retrieve(batch.id);
      }
      const told = await (await client.files.content(batch.output_file_id)).text();
      const names = [];
      for await (const each of client.batches.list({ limit: 1 })) names.push(each.id);
      const answers = told.trim().split("\n").map((line) => JSON.parse(line));
      return { keys: answers.map((each) => each.custom_id).sort(), counts: batch.request_counts,
               isListed: names.includes(batch.id) };
    },
    async background({ model, messages, max_tokens }) {
      const asked = { model, input: messages[0].content, max_output_tokens: max_tokens, background: true };
      let answer = await client.responses.create(asked);
      while (answer.status !== "completed") {
        await pause();
        answer = await client.responses.retrieve(answer.id);
      }
      return { text: answer.output_text };
    },
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
    async batch(params) {
      const requests = ["a", "b"].map((custom_id) => ({ custom_id, params }));
      let batch = await client.messages.batches.create({ requests });
      while (batch.processing_status !== "ended") {
        await pause();
        batch = await client.messages.batches.retrieve(batch.id);
      }
      const keys = [];
      for await (const each of await client.messages.batches.results(batch.id))
        if (each.result.type === "succeeded") keys.push(each.custom_id);
      const names = [];
      for await (const each of client.messages.batches.list({ limit: 1 })) names.push(each.id);
      return { keys: keys.sort(), counts: batch.request_counts, isListed: names.includes(batch.id) };
    },
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
