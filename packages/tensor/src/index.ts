export * from "./backend.js";
export * from "./dtype.js";
export * from "./errors.js";
export { leakCheck } from "./leaks.js";
export * from "./memory.js";
export * from "./packed.js";
export * from "./problem.js";
export { Routing, type RoutingInfo } from "./routing.js";
export { isTensor, type Storage, type StorageOwner, Tensor } from "./tensor.js";
