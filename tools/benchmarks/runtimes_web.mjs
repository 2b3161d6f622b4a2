// The process that tools/benchmarks/runtimes_process.py measures for onnxruntime-web: it loads one model in headless Chromium, or
// in Node where there is no browser, runs it, and writes its outputs.
//
// node runtimes_web.mjs JOB.json, run in the folder that has onnxruntime-web and puppeteer-core in node_modules. A job is
//   {model, data: [{path, file}], inputs: [{name, type, dims, file}], out, provider: "wasm" | "webgpu", browser, options}
// At each stage it prints one line of JSON and waits for a line on stdin, so that what it holds can be looked at from outside.

import { createReadStream, readFileSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { extname, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const job = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const here = createRequire(join(process.cwd(), 'package.json'));
const dist = resolve('node_modules/onnxruntime-web/dist');
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const outputs = [];

async function stage(name, facts, pid) {
  process.stdout.write(`${JSON.stringify({ stage: name, pid, ...facts })}\n`);
  if (name !== 'done') await lines.next();
}

function deliver(name, type, dims, base64) {
  const file = join(job.out, `${outputs.length}.bin`);
  writeFileSync(file, Buffer.from(base64, 'base64'));
  outputs.push({ name, type, dims, file });
}

// What runs in the page, or here. It must not use anything from outside of it.
async function work(job, ort, read, stage, deliver) {
  const views = { float32: Float32Array, int64: BigInt64Array, bool: Uint8Array, int32: Int32Array };
  const heaps = [];
  const Memory = WebAssembly.Memory;
  WebAssembly.Memory = class extends Memory {
    constructor(...args) {
      super(...args);
      heaps.push(this);
    }
  };
  const collect = async () => {
    for (let i = 0; i < 3; i++) {
      globalThis.gc?.();
      await new Promise((done) => setTimeout(done, 200));
    }
  };
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = 'error';
  const feeds = {};
  for (const { name, type, dims, url } of job.inputs) {
    feeds[name] = new ort.Tensor(type, new views[type]((await read(url)).buffer), dims);
  }
  await collect();
  await stage('before', {});
  let adapter = null;
  if (job.provider === 'webgpu') {
    const found = await navigator.gpu?.requestAdapter();
    if (!found) throw new Error('no WebGPU adapter');
    adapter = `${found.info.vendor} ${found.info.architecture} ${found.info.description}`.trim();
  }
  let session = null;
  {
    const externalData = [];
    for (const { path, url } of job.data) externalData.push({ path, data: await read(url) });
    const model = await read(job.url);
    session = await ort.InferenceSession.create(model, { executionProviders: [job.provider], externalData, ...job.options });
  }
  const heap = () => heaps.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
  await collect();
  await stage('loaded', { heap: heap() });
  const results = await session.run(feeds);
  for (const [name, tensor] of Object.entries(results)) {
    const data = await tensor.getData();
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    let text = '';
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    await deliver(name, tensor.type, tensor.dims, btoa(text));
  }
  await collect();
  await stage('ran', { heap: heap(), adapter, version: ort.env.versions.web });
}

const library = job.provider === 'webgpu' ? 'ort.webgpu.min.mjs' : 'ort.wasm.min.mjs';
const files = [job.model, ...job.data.map((item) => item.file), ...job.inputs.map((item) => item.file)];
const named = (prefix) => ({
  ...job,
  url: `${prefix}0`,
  data: job.data.map(({ path }, i) => ({ path, url: `${prefix}${1 + i}` })),
  inputs: job.inputs.map((item, i) => ({ ...item, url: `${prefix}${1 + job.data.length + i}` })),
});

async function inNode() {
  const ort = await import(pathToFileURL(here.resolve('onnxruntime-web')).href);
  const read = async (url) => new Uint8Array(readFileSync(files[Number(url)]));
  await work(named(''), ort, read, (name, facts) => stage(name, facts, process.pid), deliver);
  await stage('done', { where: `Node ${process.version}`, outputs }, process.pid);
}

async function inBrowser() {
  const { default: puppeteer } = await import(pathToFileURL(here.resolve('puppeteer-core')).href);
  const kinds = { '.mjs': 'text/javascript', '.js': 'text/javascript', '.wasm': 'application/wasm' };
  const server = createServer((request, response) => {
    const send = (file, type) => {
      response.writeHead(200, { 'Content-Type': type, 'Content-Length': statSync(file).size });
      createReadStream(file).pipe(response);
    };
    const [, folder, name] = request.url.split('?')[0].split('/');
    if (folder === 'ort' && !name.includes('..')) send(join(dist, name), kinds[extname(name)] ?? 'application/octet-stream');
    else if (folder === 'file') send(files[Number(name)], 'application/octet-stream');
    else response.writeHead(200, { 'Content-Type': 'text/html' }).end('<!doctype html><title>run</title>');
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  const gpu = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=Vulkan'];
  const browser = await puppeteer.launch({
    executablePath: job.browser,
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--js-flags=--expose-gc', ...(job.provider === 'webgpu' ? gpu : [])],
    protocolTimeout: 0,
    timeout: 120_000,
  });
  try {
    const page = await browser.newPage();
    page.setDefaultTimeout(0);
    const pid = browser.process().pid;
    await page.exposeFunction('tellStage', (name, facts) => stage(name, facts, pid));
    await page.exposeFunction('tellOutput', deliver);
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    await page.evaluate(
      `(async () => {
        const work = ${work};
        const ort = await import('/ort/${library}');
        ort.env.wasm.wasmPaths = '/ort/';
        const read = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());
        await work(${JSON.stringify(named('/file/'))}, ort, read, window.tellStage, window.tellOutput);
      })()`,
    );
    await stage('done', { where: await browser.version(), outputs }, pid);
  } finally {
    await browser.close();
    server.close();
  }
}

try {
  await (job.browser ? inBrowser() : inNode());
  process.exit(0);
} catch (error) {
  process.stderr.write(`${error?.stack ?? error}\n`);
  process.exit(1);
}
