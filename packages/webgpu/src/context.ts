import type { FloatDType, Tensor } from "@moba-js/tensor";
import { cast } from "../kernels/elementwise.js";
import type { Commands, Piece } from "./commands.js";

/** What the launch plans know of the device. */
export interface Context {
  readonly commands: Commands;
  /** Bytes and threads that a workgroup may have. */
  readonly workgroup: { readonly storage: number; readonly invocations: number };
  /** The smallest subgroup that the device may use; 0 where subgroups are not to be used. */
  readonly subgroupSize: number;
  /** Whether the matrix units are to be used. */
  readonly matrices: boolean;
  /** Bytes of workspace that one operation may take, if it can do with less by working in waves. */
  readonly maxWorkspaceBytes: number;
}

/** Runs `compute` on a float32 output of so many elements: the given one, or workspace that is rounded into it afterwards. */
export function inFloat32(
  context: Context,
  out: Tensor<FloatDType>,
  compute: (out: Tensor | Piece) => void,
): void {
  if (out.dtype === "f32") {
    compute(out);
    return;
  }
  const wide = context.commands.workspace(out.size);
  compute(wide);
  cast(context, wide, out, out.size);
  wide.free();
}
