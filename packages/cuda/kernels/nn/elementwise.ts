import type { FloatDType, Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";

/** Elements that a CTA of these kernels takes. */
const CTA_ELEMENTS = 256 * 8;

type Floats = Tensor<FloatDType>;

/** Enqueues a kernel whose threads take so many elements in all. */
function launchOver(device: Device, size: number, [file, name]: [string, string], args: Arguments): void {
  if (size === 0) return;
  device.launch(device.kernel(file, name), [ceilDiv(size, CTA_ELEMENTS), 1, 1], 256, 0, args);
}

const pointers = (...tensors: Tensor[]): Arguments =>
  tensors.reduce((args, tensor) => args.pointer(pointerOf(tensor)), new Arguments());

/** `Backend.add`. */
export function add(device: Device, { a, b }: { a: Floats; b: Floats }, out: Floats): void {
  launchOver(device, a.size, ["add", `add_${a.dtype}`], pointers(a, b, out).long(a.size));
}

/** `Backend.cast`. */
export function cast(device: Device, x: Floats, out: Floats): void {
  launchOver(device, x.size, ["cast", `cast_${x.dtype}_${out.dtype}`], pointers(x, out).long(x.size));
}

/** `Backend.swiglu`. */
export function swiglu(device: Device, { gate, up }: { gate: Floats; up: Floats }, out: Floats): void {
  launchOver(device, gate.size, ["swiglu", `swiglu_${gate.dtype}`], pointers(gate, up, out).long(gate.size));
}

/** `Backend.swigluBackward`. */
export function swigluBackward(
  device: Device,
  { dOut, gate, up }: { dOut: Floats; gate: Floats; up: Floats },
  { dGate, dUp }: { dGate: Floats; dUp: Floats },
): void {
  const args = pointers(dOut, gate, up, dGate, dUp).long(gate.size);
  launchOver(device, gate.size, ["swiglu_backward", `swiglu_backward_${gate.dtype}`], args);
}
