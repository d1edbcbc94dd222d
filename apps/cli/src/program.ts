import { GROUPS } from "@moba-js/conformance";
import { ArgumentError, DeviceError, FLOAT_DTYPES, MobaError } from "@moba-js/tensor";
import { Command, CommanderError, Option } from "commander";
import { type BackendName, openBackend } from "moba-js";
import { version } from "../package.json";
import { type BenchAttentionOptions, benchAttention } from "./commands/bench.js";
import { type BenchCostOptions, benchCost } from "./commands/bench-cost.js";
import { type ConformanceCommandOptions, conformance } from "./commands/conformance.js";
import { type DemoOptions, demo } from "./commands/demo.js";
import { doctor } from "./commands/doctor.js";
import { type FindOptions, find } from "./commands/find.js";
import { type PlanCommandOptions, planCommand } from "./commands/plan.js";
import { type SnrReportOptions, snrReport } from "./commands/snr-report.js";
import { Output, type TextStream } from "./output.js";

/** Where the program writes. `process` is one. */
export interface Streams {
  readonly stdout: TextStream;
  readonly stderr: TextStream;
}

/** All is well; the job failed (a check, a device); bad usage or input. */
const EXIT = { ok: 0, failed: 1, usage: 2 } as const;

/** An option whose value is an integer of at least `least`. */
function integerOption(flags: string, description: string, initial?: number, least = 1): Option {
  const parse = (text: string): number => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < least || value > 2 ** 31 - 1) {
      throw new ArgumentError(flags.split(" ")[0], text, `an integer from ${least} to 2^31 - 1`);
    }
    return value;
  };
  const option = new Option(flags, description).argParser(parse);
  return initial === undefined ? option : option.default(initial);
}

/** An option whose value is a number above 0. */
function numberOption(flags: string, description: string, initial: number): Option {
  const parse = (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value <= 0) {
      throw new ArgumentError(flags.split(" ")[0], text, "a number above 0");
    }
    return value;
  };
  return new Option(flags, description).argParser(parse).default(initial);
}

const dtypeOption = (): Option =>
  new Option("--dtype <dtype>", "element type").choices(FLOAT_DTYPES).default("f32");

const seedOption = (initial?: number): Option =>
  integerOption("--seed <number>", "what random numbers follow from", initial, 0);

const backendOption = (): Option => new Option("--backend <name>", "the best that opens, when not given");

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
    .description("causal MoBA against dense attention, forward")
    .addOption(integerOption("--tokens <N>", "tokens", 4096))
    .addOption(integerOption("--heads <H>", "query heads", 2))
    .addOption(
      integerOption("--kv-heads <Hkv>", "key and value heads; as many as query heads, when not given"),
    )
    .addOption(integerOption("--dim <d>", "head dimension", 64))
    .addOption(integerOption("--block-size <B>", "tokens a block", 128))
    .addOption(integerOption("--top-k <k>", "blocks a query attends, its own included", 8))
    .addOption(dtypeOption())
    .addOption(integerOption("--repeats <number>", "runs of which the median counts", 7))
    .addOption(backendOption())
    .addOption(seedOption(1))
    .addOption(jsonOption())
    .action(async (options: BenchAttentionOptions & CommonOptions) => {
      using backend = await openBackend(options.backend);
      finish(await benchAttention(backend, options, outputFor(options)));
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
