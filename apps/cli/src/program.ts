import { GROUPS } from "@moba-js/conformance";
import { PRESETS } from "@moba-js/model";
import { ArgumentError, DeviceError, FLOAT_DTYPES, MobaError } from "@moba-js/tensor";
import { Command, CommanderError, Option } from "commander";
import { type BackendName, openBackend } from "moba-js";
import { version } from "../package.json";
import { type BenchAttentionOptions, benchAttention } from "./commands/bench.js";
import { type BenchCostOptions, benchCost } from "./commands/bench-cost.js";
import { type BenchDecodeOptions, benchDecode } from "./commands/bench-decode.js";
import { type BenchTrainOptions, benchTrain } from "./commands/bench-train.js";
import { type ConformanceCommandOptions, conformance } from "./commands/conformance.js";
import { type DemoOptions, demo } from "./commands/demo.js";
import { doctor } from "./commands/doctor.js";
import { type EvaluateOptions, evaluate } from "./commands/evaluate.js";
import { type FindOptions, find } from "./commands/find.js";
import { type GenerateCommandOptions, generateCommand } from "./commands/generate.js";
import { type PlanCommandOptions, planCommand } from "./commands/plan.js";
import { type SnrReportOptions, snrReport } from "./commands/snr-report.js";
import { type TrainOptions, train } from "./commands/train.js";
import { Output, type TextStream } from "./output.js";

/** Where the program writes. `process` is one. */
export interface Streams {
  readonly stdout: TextStream;
  readonly stderr: TextStream;
}

/** All is well; the job failed (a check, a device); bad usage or input. */
const EXIT = { ok: 0, failed: 1, usage: 2 } as const;

function parseInteger(flags: string, text: string, least: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < least || value > 2 ** 31 - 1) {
    throw new ArgumentError(flags.split(" ")[0], text, `an integer from ${least} to 2^31 - 1`);
  }
  return value;
}

/** An option whose value is an integer of at least `least`. */
function integerOption(flags: string, description: string, initial?: number, least = 1): Option {
  const option = new Option(flags, description).argParser((text) => parseInteger(flags, text, least));
  return initial === undefined ? option : option.default(initial);
}

/** An option whose values are integers of at least 1. */
function integersOption(flags: string, description: string, initial: number[]): Option {
  const parse = (text: string, before: number[]): number[] => {
    const value = parseInteger(flags, text, 1);
    return before === initial ? [value] : [...before, value];
  };
  return new Option(flags, description).argParser(parse).default(initial);
}

/** An option whose value is a number above 0, or 0 where that is allowed. */
function numberOption(flags: string, description: string, initial: number, allowsZero = false): Option {
  const parse = (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value < 0 || (value === 0 && !allowsZero)) {
      const expected = allowsZero ? "a number of at least 0" : "a number above 0";
      throw new ArgumentError(flags.split(" ")[0], text, expected);
    }
    return value;
  };
  return new Option(flags, description).argParser(parse).default(initial);
}

/** An option whose values are numbers from `low` to `high`. */
function numbersOption(
  flags: string,
  description: string,
  initial: number[],
  low: number,
  high: number,
): Option {
  const parse = (text: string, before: number[]): number[] => {
    const value = Number(text);
    if (text.trim() === "" || !(value >= low && value <= high)) {
      throw new ArgumentError(flags.split(" ")[0], text, `numbers from ${low} to ${high}`);
    }
    return before === initial ? [value] : [...before, value];
  };
  return new Option(flags, description).argParser(parse).default(initial);
}

const dtypeOption = (): Option =>
  new Option("--dtype <dtype>", "element type").choices(FLOAT_DTYPES).default("f32");

const seedOption = (initial?: number): Option =>
  integerOption("--seed <number>", "what random numbers follow from", initial, 0);

const backendOption = (): Option => new Option("--backend <name>", "the best that opens, when not given");

const kvHeadsOption = (): Option =>
  integerOption("--kv-heads <Hkv>", "key and value heads; as many as query heads, when not given");

const textOption = (): Option => new Option("--text <file>", "a UTF-8 text instead of Moby Dick");

const jsonOption = (): Option => new Option("--json", "print one JSON document, and nothing else, on stdout");

interface CommonOptions {
  readonly backend?: BackendName;
  readonly json?: boolean;
}

/** The commands. `finish` is told whether a command's job succeeded. */
function createProgram({ stdout, stderr }: Streams, finish: (succeeded: boolean) => void): Command {
  const outputFor = ({ json = false }: CommonOptions): Output => new Output(stdout, stderr, json);
  const program = new Command("moba")
    .description("Mixture of Block Attention for TypeScript")
    .version(version)
    .exitOverride()
    .configureOutput({ writeOut: (text) => stdout.write(text), writeErr: (text) => stderr.write(text) });

  program
    .command("demo")
    .description("block routing on a real text: theory against measurement, with a report")
    .addOption(textOption())
    .addOption(integerOption("--words <number>", "words of the text to use, from its beginning", 16384, 8192))
    .option("--out <file>", "where the HTML report goes", "report.html")
    .addOption(backendOption())
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action(async (options: DemoOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      await demo(backend, options, outputFor(options));
    });

  program
    .command("find")
    .description("the passages of a text that a phrase attends to most")
    .argument("<phrase>")
    .addOption(textOption())
    .addOption(integerOption("--block-size <B>", "words a block", 8))
    .addOption(integerOption("--top-k <k>", "blocks to attend", 32))
    .addOption(integerOption("--passages <number>", "passages to print", 5))
    .addOption(backendOption())
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action(async (phrase: string, options: FindOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      await find(backend, phrase, options, outputFor(options));
    });

  program
    .command("doctor")
    .description("which backends open here, and why others do not")
    .addOption(jsonOption())
    .action(async (options: CommonOptions) => {
      finish(await doctor(outputFor(options)));
    });

  program
    .command("conformance")
    .description("prove a backend right against the float64 oracle")
    .addOption(backendOption())
    .addOption(new Option("--only <groups...>", "what to check").choices(GROUPS))
    .addOption(new Option("--dtype <dtypes...>", "in which dtypes").choices(FLOAT_DTYPES))
    .addOption(seedOption())
    .addOption(jsonOption())
    .action(async (options: ConformanceCommandOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      finish(await conformance(backend, options, outputFor(options)));
    });

  program
    .command("plan")
    .description("block size and top-k for a wanted recall, ranked by cost")
    .addOption(integerOption("--tokens <N>", "tokens of the context", 65536))
    .addOption(integerOption("--dim <d>", "head dimension", 64))
    .addOption(integerOption("--heads <H>", "heads", 16))
    .addOption(numberOption("--separation <number>", "effective separation of the signal from noise", 2))
    .addOption(
      numberOption("--recall <number>", "wanted probability that the signal's block is attended", 0.95),
    )
    .option("--cost <file>", "a backend's coefficients, written by bench cost; an H100's, when not given")
    .option("--out <file>", "also write a page with a chart of recall against cost")
    .addOption(jsonOption())
    .action((options: PlanCommandOptions & CommonOptions) => planCommand(options, outputFor(options)));

  program
    .command("snr")
    .description("the statistical model of block routing")
    .command("report")
    .description("its reproduction report, simulated from scratch")
    .option("--out <file>", "where the HTML report goes", "snr-report.html")
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action((options: SnrReportOptions & CommonOptions) => snrReport(options, outputFor(options)));

  program
    .command("train")
    .description("train a model, or go on with a run that was stopped")
    .option("--run <folder>", "where checkpoints, metrics.jsonl and loss.html go", "run")
    .addOption(new Option("--preset <name>", "the model").choices(Object.keys(PRESETS)).default("tiny"))
    .addOption(
      new Option("--attention <kind>", "of every second layer").choices(["moba", "dense"]).default("moba"),
    )
    .addOption(
      integerOption(
        "--conv-width <W>",
        "width of the key convolution; the preset's, when not given",
        undefined,
        0,
      ),
    )
    .option("--data <file>", "text, .jsonl or .parquet; Moby Dick, when not given")
    .option("--field <name>", "field or column of the text", "text")
    .option("--tokenizer <file>", "a tokenizer.json; bytes, when not given")
    .addOption(integerOption("--steps <number>", "steps of the whole run", 1000))
    .addOption(integerOption("--batch-tokens <number>", "tokens of a batch", 512))
    .addOption(integerOption("--sequence-tokens <number>", "the most tokens of a sequence", 512))
    .addOption(integerOption("--accumulate <number>", "batches whose gradients make a step", 1))
    .addOption(numberOption("--learning-rate <number>", "the highest", 4e-3))
    .addOption(integerOption("--warmup-steps <number>", "steps until then", 20, 0))
    .addOption(new Option("--compute <dtype>", "of activations").choices(FLOAT_DTYPES).default("f32"))
    .option("--recompute", "keep only layer inputs for the backward pass", false)
    .addOption(
      integerOption("--hold-out <number>", "every so many documents, one is only evaluated on", 20, 2),
    )
    .addOption(integerOption("--save-every <number>", "steps from checkpoint to checkpoint", 200))
    .addOption(integerOption("--evaluate-every <number>", "steps from evaluation to evaluation", 200))
    .addOption(backendOption())
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action(async (options: TrainOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      await train(backend, options, outputFor(options));
    });

  program
    .command("generate")
    .description("continue a prompt, decoding sparsely")
    .argument("<prompt>")
    .option("--model <folder>", "a run, a checkpoint or a model", "run")
    .addOption(integerOption("--max-tokens <number>", "tokens to generate at most", 200))
    .addOption(numberOption("--temperature <number>", "0 takes the likeliest token", 0.8, true))
    .addOption(
      numberOption("--top-p <number>", "choose among the likeliest tokens of this probability", 0.95),
    )
    .option("--stop <texts...>", "texts to stop before")
    .addOption(backendOption())
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action(async (prompt: string, options: GenerateCommandOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      await generateCommand(backend, prompt, options, outputFor(options));
    });

  program
    .command("eval")
    .description("perplexity, needles and routing of a model, with a report")
    .option("--model <folder>", "a run, a checkpoint or a model", "run")
    .addOption(textOption())
    .addOption(integerOption("--tokens <number>", "tokens of the text for the perplexity", 8192))
    .addOption(
      integerOption("--sequence-tokens <number>", "tokens of a sequence, and of the look at routing", 512),
    )
    .addOption(
      new Option("--needle <tasks...>", "single-needle tasks to try").choices([
        "s-niah-1",
        "s-niah-2",
        "s-niah-3",
      ]),
    )
    .addOption(numbersOption("--lengths <numbers...>", "prompt lengths, in tokens", [512, 1024], 1, 2 ** 24))
    .addOption(numbersOption("--depths <numbers...>", "where the needle is", [0, 0.25, 0.5, 0.75, 1], 0, 1))
    .addOption(integerOption("--samples <number>", "needles for each length and depth", 1))
    .option("--out <file>", "where the HTML report goes", "eval.html")
    .addOption(backendOption())
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action(async (options: EvaluateOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      await evaluate(backend, options, outputFor(options));
    });

  const bench = program.command("bench").description("measure speed");
  bench
    .command("cost")
    .description("fit the planner's cost model to a backend")
    .addOption(integerOption("--tokens <N>", "tokens of the longest context", 4096, 1024))
    .addOption(integerOption("--heads <H>", "heads", 1))
    .addOption(integerOption("--dim <d>", "head dimension", 64))
    .addOption(dtypeOption())
    .addOption(integerOption("--repeats <number>", "runs of which the median counts", 7))
    .option("--out <file>", "where the coefficients go", "cost.json")
    .addOption(backendOption())
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action(async (options: BenchCostOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      await benchCost(backend, options, outputFor(options));
    });
  bench
    .command("attention")
    .description("causal MoBA against dense attention, forward and backward")
    .addOption(integersOption("--tokens <N...>", "tokens of a sequence, one case for each", [4096]))
    .addOption(integerOption("--batch <number>", "sequences", 1))
    .addOption(integerOption("--heads <H>", "query heads", 2))
    .addOption(kvHeadsOption())
    .addOption(integerOption("--dim <d>", "head dimension", 64))
    .addOption(integerOption("--block-size <B>", "tokens a block", 128))
    .addOption(integerOption("--top-k <k>", "blocks a query attends, its own included", 8))
    .addOption(dtypeOption())
    .option("--no-dense", "leave out dense attention")
    .option("--backward", "also the gradients, alone and together with the forward pass", false)
    .option("--skewed", "also attend where half of the queries choose the same 1 % of blocks", false)
    .addOption(integerOption("--repeats <number>", "samples of which the median counts", 7))
    .addOption(backendOption())
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action(async (options: BenchAttentionOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      finish(await benchAttention(backend, options, outputFor(options)));
    });
  bench
    .command("decode")
    .description("one decoding step against a long cache")
    .addOption(integersOption("--tokens <N...>", "keys in the cache, one case for each", [65536]))
    .addOption(integerOption("--batch <number>", "sequences", 1))
    .addOption(integerOption("--heads <H>", "query heads", 2))
    .addOption(kvHeadsOption())
    .addOption(integerOption("--dim <d>", "head dimension", 64))
    .addOption(integerOption("--block-size <B>", "tokens a block", 128))
    .addOption(integerOption("--top-k <k>", "blocks a query attends, its own included", 8))
    .addOption(dtypeOption())
    .option("--no-dense", "leave out dense attention")
    .addOption(integerOption("--repeats <number>", "samples of which the median counts", 7))
    .addOption(backendOption())
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action(async (options: BenchDecodeOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      finish(await benchDecode(backend, options, outputFor(options)));
    });
  bench
    .command("train")
    .description("whole training steps of a preset on random tokens")
    .addOption(new Option("--preset <name>", "the model").choices(Object.keys(PRESETS)).default("340m"))
    .addOption(
      new Option("--attention <kind>", "of every second layer").choices(["moba", "dense"]).default("moba"),
    )
    .addOption(integersOption("--context <N...>", "tokens of a sequence, one case for each", [8192]))
    .addOption(integerOption("--batch <number>", "sequences of a step", 1))
    .addOption(new Option("--compute <dtype>", "of activations").choices(FLOAT_DTYPES).default("bf16"))
    .option("--recompute", "keep only layer inputs for the backward pass", false)
    .addOption(integerOption("--steps <number>", "steps that are timed", 10))
    .addOption(backendOption())
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action(async (options: BenchTrainOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      finish(await benchTrain(backend, options, outputFor(options)));
    });

  return program;
}

/**
 * Runs one command line.
 * @param args the arguments after the program's name
 * @returns the exit code: 0 ok, 1 the job failed, 2 bad usage or input
 */
export async function run(args: readonly string[], streams: Streams): Promise<number> {
  let succeeded = true;
  const program = createProgram(streams, (result) => {
    succeeded = result;
  });
  try {
    await program.parseAsync(args, { from: "user" });
    return succeeded ? EXIT.ok : EXIT.failed;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    if (!(error instanceof MobaError)) throw error;
    streams.stderr.write(`moba: ${error.message}\n`);
    return error instanceof DeviceError ? EXIT.failed : EXIT.usage;
  }
}
