// A conversation through Vercel's AI SDK: node ai_sdk.mjs URL KEY MODEL QUESTION; prints one JSON object.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai';

globalThis.AI_SDK_LOG_WARNINGS = false;
const [baseURL, apiKey, model, prompt, withTools] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: 'tersely', baseURL, apiKey });
const ask = { model: provider(model), prompt, temperature: 0, maxOutputTokens: 240, maxRetries: 0 };

const plain = await generateText(ask);
const low = await generateText({ ...ask, providerOptions: { tersely: { reasoningEffort: 'low' } } });
const stopped = await generateText({ ...ask, stopSequences: ['boxed'] });
const said = { plain: plain.text, thought: plain.reasoningText, low: low.text, stopped: stopped.text, streamed: '' };
for await (const part of streamText(ask).fullStream) {
  if (part.type === 'error') throw part.error;
  if (part.type === 'text-delta') said.streamed += part.text;
}
const leaving = new AbortController();
for await (const part of streamText({ ...ask, abortSignal: leaving.signal }).fullStream) {
  if (part.type === 'reasoning-delta') leaving.abort();
}
if (withTools) {
  const inputSchema = jsonSchema({ type: 'object', properties: { a: { type: 'number' }, b: { type: 'number' } } });
  const tools = { add: tool({ description: 'Add.', inputSchema, execute: async ({ a, b }) => a + b }) };
  const { steps } = await generateText({ ...ask, tools, stopWhen: stepCountIs(2) });
  said.calls = steps[0].toolCalls.map(({ toolName, input }) => [toolName, input]);
}
console.log(JSON.stringify(said));
