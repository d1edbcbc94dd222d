import { bytesPerElement, type FloatDType, type Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";

const THREADS = 256;
/** Elements of a CTA's share, at least, and CTAs, at most. */
const [SHARE, MOST_PARTS] = [8192, 1024];

/** The sum of all elements in an order that depends on their number only. */
function total(device: Device, kernel: string, x: Tensor<FloatDType>, out: Tensor<"f32">): void {
  const parts = Math.min(MOST_PARTS, ceilDiv(x.size, SHARE));
  using sums = device.scratch(parts * bytesPerElement("f32"));
  const args = new Arguments().pointer(pointerOf(x)).pointer(sums.pointer).long(x.size);
  device.launch(device.kernel("sum", `${kernel}_${x.dtype}`), [parts, 1, 1], THREADS, 0, args);
  const last = new Arguments().pointer(sums.pointer).int(parts).pointer(pointerOf(out));
  device.launch(device.kernel("sum", "sum_parts"), [1, 1, 1], THREADS, 0, last);
}

/** `Backend.sum`. */
export const sum = (device: Device, x: Tensor<FloatDType>, out: Tensor<"f32">): void =>
  total(device, "sum", x, out);

/** `Backend.sumSquares`. */
export const sumSquares = (device: Device, x: Tensor<FloatDType>, out: Tensor<"f32">): void =>
  total(device, "sum_squares", x, out);
