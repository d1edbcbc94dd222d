/// <reference types="@webgpu/types" />
import { assemble, type Kernel, type Specialization } from "./kernel.js";

/** Progress of compiling: pipelines ready, out of all. */
export type CompileProgress = (done: number, total: number) => void;

/** A compiled kernel. */
export interface Pipeline {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/** The bytes that a launch's parameters may take. */
export const PARAM_BYTES = 256;

const COMPUTE_STAGE = 4; // GPUShaderStage.COMPUTE

/** Compiles each specialization of each kernel once, and keeps it. */
export class Pipelines {
  readonly #ready = new Map<string, Pipeline>();
  readonly #layouts = new Map<string, GPUBindGroupLayout>();
  readonly #paramsLayout: GPUBindGroupLayout;
  #wanted: Map<string, { kernel: Kernel; spec: Specialization }> | undefined;

  constructor(private readonly device: GPUDevice) {
    this.#paramsLayout = device.createBindGroupLayout({
      entries: [
        { binding: 0, visibility: COMPUTE_STAGE, buffer: { type: "uniform", hasDynamicOffset: true } },
      ],
    });
  }

  /** The layout of bind group 1: a launch's parameters. */
  get paramsLayout(): GPUBindGroupLayout {
    return this.#paramsLayout;
  }

  /** The pipelines made so far. */
  get size(): number {
    return this.#ready.size;
  }

  /** The pipeline of a kernel; nothing while {@link collect} runs, which notes it down instead. */
  get(kernel: Kernel, spec: Specialization): Pipeline | undefined {
    const key = `${kernel.name} ${JSON.stringify(spec)}`;
    const ready = this.#ready.get(key);
    if (this.#wanted) {
      if (!ready) this.#wanted.set(key, { kernel, spec });
      return undefined;
    }
    if (ready) return ready;
    const { layout, descriptor } = this.#describe(kernel, spec);
    const made = { layout, pipeline: this.device.createComputePipeline(descriptor) };
    this.#ready.set(key, made);
    return made;
  }

  /** Whether launches are only noted down. */
  get collecting(): boolean {
    return this.#wanted !== undefined;
  }

  /** Runs `body`, whose launches do nothing, and compiles what they would need. */
  async collect(body: () => void, progress?: CompileProgress): Promise<void> {
    const wanted = new Map<string, { kernel: Kernel; spec: Specialization }>();
    this.#wanted = wanted;
    try {
      body();
    } finally {
      this.#wanted = undefined;
    }
    let done = 0;
    progress?.(0, wanted.size);
    await Promise.all(
      [...wanted].map(async ([key, { kernel, spec }]) => {
        const { layout, descriptor } = this.#describe(kernel, spec);
        const pipeline = await this.device.createComputePipelineAsync(descriptor);
        this.#ready.set(key, { layout, pipeline });
        done += 1;
        progress?.(done, wanted.size);
      }),
    );
  }

  #describe(kernel: Kernel, spec: Specialization) {
    const layout = this.#layoutOf(kernel);
    const descriptor: GPUComputePipelineDescriptor = {
      label: kernel.name,
      layout: this.device.createPipelineLayout({ bindGroupLayouts: [layout, this.#paramsLayout] }),
      compute: {
        module: this.device.createShaderModule({ label: kernel.name, code: assemble(kernel, spec) }),
        entryPoint: "main",
      },
    };
    return { layout, descriptor };
  }

  /** Kernels whose buffers are read and written alike share a layout. */
  #layoutOf({ bindings }: Kernel): GPUBindGroupLayout {
    const types = Object.values(bindings).map(({ access }) =>
      access === "read" ? ("read-only-storage" as const) : ("storage" as const),
    );
    const key = types.join();
    let layout = this.#layouts.get(key);
    if (!layout) {
      layout = this.device.createBindGroupLayout({
        entries: types.map((type, binding) => ({ binding, visibility: COMPUTE_STAGE, buffer: { type } })),
      });
      this.#layouts.set(key, layout);
    }
    return layout;
  }
}
