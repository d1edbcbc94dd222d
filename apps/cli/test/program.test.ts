import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ReferenceBackend } from "@moba-js/reference";
import type {
  AttendBackwardProblem,
  AttentionGradients,
  AttentionProblem,
  AttentionResult,
  CentroidsProblem,
  RouteCentroidsProblem,
  Tensor,
} from "@moba-js/tensor";
import { buildSync } from "esbuild";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import packageJson from "../package.json" with { type: "json" };
import { benchAttention } from "../src/commands/bench.js";
import { benchDecode } from "../src/commands/bench-decode.js";
import { conformance } from "../src/commands/conformance.js";
import { Output } from "../src/output.js";
import { run } from "../src/program.js";
import { generator, integer } from "../src/random.js";
import { Captured, freshSeed, moba } from "./support.js";

const seed = freshSeed();
const root = fileURLToPath(new URL("../../..", import.meta.url));

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moba-program-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

const file = (name: string, content: string | Uint8Array): string => {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
};

/** A small text: words of a small vocabulary, the early ones more often. */
const smallText = (words: number): string => {
  const random = generator("small text", seed);
  return Array.from({ length: words }, () => `w${integer(random, 1 + integer(random, 3000))}`).join(" ");
};

describe("usage", () => {
  it.each([
    [[]],
    [["fly"]],
    [["find"]],
    [["find", "whale", "--top-k", "0"]],
    [["find", "whale", "--block-size", "-3"]],
    [["find", "whale", "--block-size", "1.5"]],
    [["find", "whale", "--passages", "many"]],
    [["find", "whale", "--frobnicate"]],
    [["demo", "--seed", "-1"]],
    [["demo", "--backend", "abacus"]],
    [["demo", "too", "many"]],
    [["conformance", "--only", "everything"]],
    [["conformance", "--dtype", "i32"]],
    [["bench"]],
    [["bench", "attention", "--heads", "4", "--kv-heads", "3"]],
    [["bench", "attention", "--tokens", "99999999999"]],
    [["bench", "attention", "--dtype", "f64"]],
  ])("%j is refused with code 2, one message on stderr and nothing on stdout", async (args) => {
    const { code, stdout, stderr } = await moba(...args);
    expect(code).toBe(2);
    expect(stdout).toBe("");
    expect(stderr).not.toBe("");
    expect(stderr).not.toMatch(/^\s+at /m);
  });

  it("names the option, the value and what was expected", async () => {
    expect((await moba("find", "whale", "--top-k", "0")).stderr).toBe(
      'moba: --top-k: expected an integer from 1 to 2^31 - 1, got "0"\n',
    );
    expect((await moba("demo", "--backend", "abacus")).stderr).toBe(
      'moba: backend: expected one of cuda, webgpu, cpu, got "abacus"\n',
    );
  });

  it("--help and --version are no errors", async () => {
    expect(await moba("--version")).toEqual({ code: 0, stdout: `${packageJson.version}\n`, stderr: "" });
    const help = await moba("bench", "attention", "--help");
    expect(help).toMatchObject({ code: 0, stderr: "" });
    expect(help.stdout).toContain("--kv-heads");
  });
});

describe("texts that cannot be used", () => {
  it.each([
    ["missing", () => join(folder, "nowhere.txt"), "ENOENT"],
    ["a directory", () => folder, "EISDIR"],
    ["not UTF-8", () => file("latin1.txt", Buffer.from("caf\xe9 noir", "latin1")), "byte 0xe9 at offset 3"],
    ["empty", () => file("empty.txt", ""), "has 0 words"],
  ])("%s: code 2 and one line naming file and reason", async (_, path, reason) => {
    for (const command of [
      ["find", "whale"],
      ["demo", "--out", join(folder, "never.html")],
    ]) {
      const { code, stdout, stderr } = await moba(...command, "--text", path());
      expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
      expect(stderr).toContain(path());
      expect(stderr).toContain(reason);
      expect(stderr.trimEnd().split("\n")).toHaveLength(1);
    }
    expect(existsSync(join(folder, "never.html"))).toBe(false);
  });

  it("too short for the demo: says how many words it takes", async () => {
    const { code, stderr } = await moba("demo", "--text", file("short.txt", smallText(100)));
    expect(code).toBe(2);
    expect(stderr).toContain("has 100 words, at least 8192 are needed");
  });
});

describe("doctor", () => {
  it("says what opens here", async () => {
    const { code, stdout } = await moba("doctor");
    expect(code).toBe(0);
    expect(stdout).toContain(process.version);
    expect(stdout).toMatch(/^cpu +available/m);
    const report = JSON.parse((await moba("doctor", "--json")).stdout);
    expect(report.backends).toContainEqual(expect.objectContaining({ name: "cpu", available: true }));
  });
});

describe("find", () => {
  const text = `${"lorem ipsum dolor sit amet ".repeat(60)}\n\na white whale\n${"consectetur elit ".repeat(90)}`;

  it("prints the passage with its place", async () => {
    const { code, stdout } = await moba(
      "find",
      "WHITE whale",
      "--text",
      file("lorem.txt", text),
      "--top-k",
      "2",
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/^1\. lorem\.txt, line 3 \(/m);
    expect(stdout).toContain("a white whale");
    expect(stdout).toContain("seed 1");
    expect(stdout).not.toContain("\u001b");
  });

  it("prints one JSON document with --json", async () => {
    const args = [
      "find",
      "white elephant",
      "--text",
      file("lorem.txt", text),
      "--json",
      "--seed",
      String(seed),
    ];
    const { stdout } = await moba(...args);
    const found = JSON.parse(stdout);
    expect(found).toMatchObject({ known: ["white"], unknown: ["elephant"], seed, blockSize: 8, topK: 32 });
    expect(found.passages[0].text).toContain("white whale");
  });

  it("refuses a phrase without a known word, naming it", async () => {
    const { code, stderr } = await moba("find", "xyzzy plugh", "--text", file("lorem.txt", text));
    expect(code).toBe(2);
    expect(stderr).toContain('phrase: expected a word that lorem.txt holds, got "xyzzy plugh"');
  });

  describe("on a terminal", () => {
    const onTerminal = async () => {
      const stdout = new Captured(true);
      const path = file("lorem.txt", text);
      expect(await run(["find", "whale", "--text", path], { stdout, stderr: new Captured() })).toBe(0);
      return stdout.text;
    };
    const { NO_COLOR } = process.env;
    afterEach(() => {
      if (NO_COLOR === undefined) delete process.env.NO_COLOR;
      else process.env.NO_COLOR = NO_COLOR;
    });

    it("highlights the phrase's words, unless NO_COLOR is set", async () => {
      delete process.env.NO_COLOR;
      expect(await onTerminal()).toMatch(/white \p{Cc}\[\S+mwhale\p{Cc}\[/u);
      process.env.NO_COLOR = "1";
      expect(await onTerminal()).not.toContain("\u001b");
    });
  });
});

describe("conformance", () => {
  it("prints the matrix and succeeds on the CPU backend", async () => {
    const args = ["conformance", "--only", "centroids", "route", "--dtype", "f32", "--seed", "7"];
    const { code, stdout, stderr } = await moba(...args);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^centroids +pass/m);
    expect(stdout).toContain("seed 7");
    expect(stderr).toContain("conformance 1/2: centroids f32");
  });

  it("fails a backend that is wrong, with a report that parses", async () => {
    class WrongCentroids extends ReferenceBackend {
      protected override runCentroids(problem: CentroidsProblem, output: Tensor<"f32">): void {
        super.runCentroids(problem, output);
        const { array } = output.storage as unknown as { array: Float32Array };
        if (array.length > 0) array[array.length - 1] *= 1.001;
      }
    }
    const stdout = new Captured();
    const output = new Output(stdout, new Captured(), true);
    const options = { only: ["centroids"], dtype: ["f32"], seed: 7 } as const;
    expect(await conformance(new WrongCentroids(), options, output)).toBe(false);
    expect(JSON.parse(stdout.text).failed).toBeGreaterThan(0);
  });
});

describe("bench attention", () => {
  const args = ["bench", "attention", "--tokens", "300", "--heads", "4", "--kv-heads", "2", "--dim", "16"];
  const shape = ["--block-size", "24", "--top-k", "3", "--repeats", "3"];

  it("checks, times every stage and prints the ratio", async () => {
    const { code, stdout } = await moba(...args, ...shape);
    expect(code).toBe(0);
    for (const stage of ["centroids", "route", "attend", "MoBA forward", "dense forward"]) {
      expect(stdout).toContain(stage);
    }
    expect(stdout).toMatch(/^dense \/ MoBA = \d+\.\d\d$/m);
  });

  it("gives all samples as JSON, of which the medians are", async () => {
    const { stdout } = await moba(...args, ...shape, "--json", "--dtype", "bf16", "--seed", String(seed));
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ seed, dtype: "bf16", kvHeads: 2, repeats: 3 });
    expect(report.cases).toHaveLength(1);
    const [{ tokens, check, samples, median, ratio }] = report.cases;
    expect({ tokens, passed: check.passed }).toEqual({ tokens: 300, passed: true });
    for (const [stage, times] of Object.entries<number[]>(samples)) {
      expect(times).toHaveLength(3);
      expect(median[stage]).toBe(times.toSorted((a, b) => a - b)[1]);
    }
    expect(ratio).toBeCloseTo(median.dense / median.moba, 10);
  });

  it("takes several lengths, a batch and a skewed routing, and leaves dense attention out", async () => {
    const more = ["150", "--batch", "2", "--skewed", "--no-dense", "--json"];
    const { code, stdout } = await moba(...args.slice(0, 4), ...more, ...args.slice(4), ...shape);
    expect(code).toBe(0);
    const { cases, batch } = JSON.parse(stdout);
    expect(batch).toBe(2);
    expect(cases.map(({ tokens }: { tokens: number }) => tokens)).toEqual([300, 150]);
    for (const { check, median } of cases) {
      expect(check.passed).toBe(true);
      expect(Object.keys(median)).toEqual([
        "centroids",
        "route",
        "attend",
        "moba",
        "attend-uniform",
        "attend-skewed",
      ]);
    }
  });

  it("times gradients too, which it checks first", async () => {
    const { code, stdout } = await moba(...args, ...shape, "--backward", "--json", "--dtype", "f16");
    expect(code).toBe(0);
    const [{ check, median, work }] = JSON.parse(stdout).cases;
    expect(check.gradients).toMatchObject({ passed: true, keys: 600, queries: 1200 });
    const gradients = ["backward", "forwardBackward", "denseBackward", "denseForwardBackward"];
    expect(Object.keys(median)).toEqual(["centroids", "route", "attend", "moba", "dense", ...gradients]);
    expect(work.forwardBackward.flop).toBe(work.moba.flop + work.backward.flop);

    const text = await moba(...args, ...shape, "--backward", "--no-dense");
    expect(text.stdout).toMatch(/^gradients checked of 600 keys and 1,200 queries: dq .*, dk .*, dv /m);
    expect(text.stdout).toContain("MoBA forward + backward");
    expect(text.stdout).not.toContain("dense");
  });

  const shapeOfAll = {
    tokens: [200],
    batch: 1,
    dense: true,
    skewed: false,
    backward: true,
    heads: 2,
    dim: 16,
    blockSize: 24,
    topK: 3,
    dtype: "f32",
    repeats: 3,
    seed,
  } as const;
  /** What the benchmark reports of a backend that must fail. */
  const failing = async (backend: ReferenceBackend) => {
    const stdout = new Captured();
    const output = new Output(stdout, new Captured(), true);
    expect(await benchAttention(backend, shapeOfAll, output)).toBe(false);
    const [result] = JSON.parse(stdout.text).cases;
    expect(result).not.toHaveProperty("samples");
    return result.check;
  };

  it("times nothing on a backend whose results are wrong", async () => {
    class WrongDense extends ReferenceBackend {
      protected override runAttention(
        problem: AttentionProblem & { causal: boolean },
        outputs: AttentionResult,
      ): void {
        super.runAttention({ ...problem, scale: problem.scale * 1.01 }, outputs);
      }
    }
    const check = await failing(new WrongDense());
    expect(check).toMatchObject({ passed: false, routing: { error: 0 } });
    expect(check).not.toHaveProperty("gradients");
  });

  it("times nothing on a backend whose gradients are wrong", async () => {
    class WrongGradient extends ReferenceBackend {
      protected override runAttendBackward(
        problem: AttendBackwardProblem,
        outputs: AttentionGradients,
      ): void {
        super.runAttendBackward(problem, outputs);
        const { array } = outputs.dk.storage as unknown as { array: Float32Array };
        array[integer(generator("spoiled", seed), array.length)] += 0.1;
      }
    }
    const { passed, moba, gradients } = await failing(new WrongGradient());
    expect(passed).toBe(false);
    expect(moba.error).toBeLessThan(moba.bound);
    expect(gradients.moba.dk.error).toBeGreaterThan(gradients.moba.dk.bound);
    expect(gradients.moba.dv.error).toBeLessThan(gradients.moba.dv.bound);
  });
});

describe("bench decode", () => {
  const args = ["bench", "decode", "--batch", "3", "--heads", "4", "--kv-heads", "2", "--dim", "16"];
  const shape = ["--block-size", "24", "--top-k", "3", "--repeats", "3", "--seed", String(seed)];

  it("checks and times a step for each length", async () => {
    const { code, stdout } = await moba(...args, ...shape, "--tokens", "300", "97", "--json");
    expect(code).toBe(0);
    for (const { check, samples, median } of JSON.parse(stdout).cases) {
      expect(check.passed).toBe(true);
      expect(samples.moba).toHaveLength(3);
      expect(median.dense).toBe(samples.dense.toSorted((a: number, b: number) => a - b)[1]);
    }
  });

  it("prints a table, without dense attention if that is not wanted", async () => {
    const { stdout } = await moba(...args, ...shape, "--tokens", "200", "--no-dense");
    expect(stdout).toMatch(/^N = 200: checked on 12 rows: MoBA/m);
    expect(stdout).toMatch(/^N = 200 +\d+\.\d+ ms$/m);
  });

  it("times nothing when the step is wrong", async () => {
    class WrongStep extends ReferenceBackend {
      protected override runRouteCentroids(problem: RouteCentroidsProblem, indices: Tensor<"i32">): void {
        super.runRouteCentroids({ ...problem, topK: 1 }, indices);
      }
    }
    const stdout = new Captured();
    const options = {
      ...{ tokens: [200], batch: 1, heads: 2, dim: 16, blockSize: 24, topK: 3, repeats: 3, dense: false },
      ...({ dtype: "f32", seed } as const),
    };
    expect(await benchDecode(new WrongStep(), options, new Output(stdout, new Captured(), true))).toBe(false);
    expect(JSON.parse(stdout.text).cases[0]).not.toHaveProperty("samples");
  });
});

describe("demo", () => {
  it("measures, predicts and writes a report that stands alone", async () => {
    const place = join(folder, "demo");
    mkdirSync(place);
    const out = join(place, "report <1> & more.html");
    const text = file("R&D <b>.txt", smallText(8192));
    const { code, stdout, stderr } = await moba(
      "demo",
      "--text",
      text,
      "--out",
      out,
      "--seed",
      String(seed),
      "--json",
    );
    expect(code).toBe(0);
    const result = JSON.parse(stdout);
    expect(result).toMatchObject({ seed, report: out, text: { name: "R&D <b>.txt", words: 8192 } });
    expect(result.cells.length).toBeGreaterThanOrEqual(12);
    for (const { needles, hits, predicted, inside } of result.cells) {
      expect(needles).toBeGreaterThanOrEqual(200);
      expect(inside).toBe(predicted.low <= hits && hits <= predicted.high);
    }
    // The words of this text are drawn at random; so the prediction holds, in nine of ten cells at the least.
    expect(result.inside).toBeGreaterThanOrEqual(0.9 * result.cells.length);
    expect(result.explanations).toHaveLength(result.cells.length - result.inside);
    expect(result.timing.rows.map(({ tokens }: { tokens: number }) => tokens)).toEqual([8192]);
    expect(stderr).toContain("demo 1/");

    expect(readdirSync(place)).toEqual(["report <1> & more.html"]);
    const page = readFileSync(out, "utf8");
    expect(page).not.toMatch(/https?:|<script|<link|<img|<iframe|@import|url\(|\bsrc=|\bhref=/i);
    expect(page).toContain("R&amp;D &lt;b&gt;.txt");
    expect(page).not.toContain("<b>.txt");
    expect(page.match(/<svg /g)).toHaveLength(5);
    expect(page).toContain(`seed ${seed}`);
    for (const sentence of result.explanations) expect(page).toContain(sentence);
    expect(page).not.toMatch(/NaN|undefined|Infinity/);
  });

  it("refuses a place that cannot be written before it works", async () => {
    const text = file("long.txt", smallText(8192));
    for (const out of [join(folder, "nowhere", "report.html"), folder]) {
      const { code, stderr } = await moba("demo", "--text", text, "--out", out);
      expect(code).toBe(2);
      expect(stderr).toContain(`${out}: cannot be written`);
      expect(stderr).not.toContain("demo 1/");
    }
  });
});

describe("the command", () => {
  let main: string;
  let place: string;
  beforeAll(() => {
    // Beside the package's own modules, so that its dependencies resolve.
    place = mkdtempSync(join(root, "apps/cli/test/bundle-"));
    main = join(place, "main.mjs");
    buildSync({
      entryPoints: [join(root, "apps/cli/src/main.ts")],
      bundle: true,
      platform: "node",
      format: "esm",
      target: "node20",
      // Of the packages' own dependencies the bundle has a copy: they do not resolve from here.
      external: ["@stdlib/*", "cli-progress", "commander", "webgpu"],
      loader: { ".wgsl": "text" },
      tsconfig: join(root, "tsconfig.json"),
      outfile: main,
    });
  });
  afterAll(() => rmSync(place, { recursive: true }));

  const command = (...args: string[]) => spawnSync(process.execPath, [main, ...args], { encoding: "utf8" });

  it("exits with 0, JSON on stdout, nothing on stderr", () => {
    const { status, stdout, stderr } = command("doctor", "--json");
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(JSON.parse(stdout).node).toBe(process.version);
  });

  it("exits with 2 and one line for bad input", () => {
    const { status, stdout, stderr } = command("find", "whale", "--text", join(folder, "nowhere.txt"));
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
    expect(stderr).toMatch(/^moba: .*nowhere\.txt: cannot be read \(ENOENT.*\)\n$/);
  });

  it("finds a phrase in Moby Dick", () => {
    const { status, stdout } = command("find", "the whiteness of the whale");
    expect(status).toBe(0);
    expect(stdout).toContain("Chapter 42. The Whiteness of The Whale");
    expect(stdout).toContain("whiteness of the whale that above all things appalled me");
  });
});
