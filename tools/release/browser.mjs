// The packages for browsers: bundled with Vite, and run in Chromium.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { chromium } from "playwright-core";
import { assert, run } from "./steps.mjs";

const PACKAGES = ["tensor", "reference", "snr", "conformance", "model", "webgpu"].map(
  (name) => `@moba-js/${name}`,
);

const PAGE = `
import { runConformance } from "@moba-js/conformance";
import { ByteTokenizer, generate, PRESETS, Transformer } from "@moba-js/model";
import { ReferenceBackend } from "@moba-js/reference";
import { snr } from "@moba-js/snr";
import { cuSeqlensFromLengths } from "@moba-js/tensor";
import { openWebGpu } from "@moba-js/webgpu";
import { openBackend } from "moba-js";

const attend = async (backend) => {
  const x = backend.tensor(Float32Array.from({ length: 64 * 8 }, Math.random), [64, 1, 8]);
  return (await backend.moba(x, x, x, { blockSize: 16, topK: 2 }).out.data()).length;
};
const write = async () => {
  const model = Transformer.initialize(new ReferenceBackend(), PRESETS.tiny, { seed: 1 });
  let tokens = 0;
  for await (const _ of generate(model, new ByteTokenizer(), ["Call me"], { maxTokens: 4 })) tokens += 1;
  return tokens > 0;
};
globalThis.results = async () => ({
  tensor: cuSeqlensFromLengths([3, 5]).join(),
  snr: snr({ headDim: 128, blockSize: 64, separation: 1 }),
  reference: await attend(new ReferenceBackend()),
  umbrella: await attend(await openBackend("cpu")),
  model: await write(),
  conformance: (await runConformance(new ReferenceBackend(), { only: ["centroids"], dtypes: ["f32"] })).failed,
  webgpu: await openWebGpu().then(attend, (error) => error.name),
});`;
const EXPECTED = { tensor: "0,3,8", snr: 1, reference: 512, umbrella: 512, model: true, conformance: 0 };

const THREE_MINUTES = 180_000;

/** Bundles a page that uses all packages in the project `dir`, and runs it. @returns a remark */
export async function bundleAndBrowse(dir, env) {
  const browser =
    process.env.CHROMIUM ??
    spawnSync("which", ["chromium", "google-chrome"], { encoding: "utf8" }).stdout.split("\n")[0];
  assert(browser || !process.env.CI, "no Chromium found (install one, or name it in CHROMIUM)");
  await run("npm", ["install", "--save-dev", "vite@8", ...PACKAGES, "moba-js"], { cwd: dir, env });
  writeFileSync(join(dir, "index.html"), `<script type="module" src="/main.js"></script>`);
  writeFileSync(join(dir, "main.js"), PAGE);
  await run(join(dir, "node_modules", ".bin", "vite"), ["build"], { cwd: dir, env });
  if (!browser) return "bundled; not run: no Chromium found (install one, or name it in CHROMIUM)";

  const server = await serve(join(dir, "dist"));
  const instance = await chromium.launch({
    executablePath: browser,
    args: ["--no-sandbox"],
    timeout: THREE_MINUTES,
  });
  try {
    const page = await instance.newPage();
    page.setDefaultTimeout(THREE_MINUTES);
    const errors = [];
    page.on("pageerror", (error) => errors.push(error.message));
    await page.goto(server.url);
    const { webgpu, ...others } = await page.evaluate("results()");
    assert(JSON.stringify(others) === JSON.stringify(EXPECTED), JSON.stringify({ others, EXPECTED }));
    assert(webgpu === 512 || webgpu === "DeviceError", `webgpu: ${webgpu}`);
    assert(errors.length === 0, errors.join("\n"));
    return webgpu === 512 ? "WebGPU too" : "no WebGPU device in this browser, and it says so";
  } finally {
    await instance.close();
    server.close();
  }
}

/** Serves a folder; returns its address. */
function serve(dir) {
  const types = { ".html": "text/html", ".js": "text/javascript" };
  const server = createServer((request, response) => {
    const file = join(dir, request.url === "/" ? "index.html" : request.url);
    if (!existsSync(file)) return response.writeHead(404).end();
    response.writeHead(200, { "content-type": types[extname(file)] ?? "text/plain" }).end(readFileSync(file));
  });
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () =>
      resolve({ url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() }),
    );
  });
}
