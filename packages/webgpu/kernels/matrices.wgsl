// What the kernels on matrix units have in common. A subgroup of 32 has as many rows, two matrices high; what passes between its lanes and
// matrices goes through a scratch of its own, a row an odd number of groups of 16 bytes.

const SIDE = 16u; // rows and columns of a matrix
const CHUNK = SIDE; // keys or centroids scored at a time
const ROWS = 2u * SIDE; // of a subgroup
const BQ = ROWS * SUBGROUP_COUNT;
const THREADS = 32u * SUBGROUP_COUNT;
const EIGHTS = 2u * STEPS; // groups of eight channels of a row
const SCRATCH_PITCH = 5u;
const SCRATCH = ROWS * SCRATCH_PITCH;
const LOWEST = -3.0e38;

alias Left = subgroup_matrix_left<f16, SIDE, SIDE>;
alias Right = subgroup_matrix_right<f16, SIDE, SIDE>;
alias Sum = subgroup_matrix_result<f32, SIDE, SIDE>;
