// Reductions over the NX threads that share a row, through workgroup memory. A barrier lies between writing and reading; whoever
// calls again must have passed another one.

var<workgroup> partials: array<f32, RQ * TY * NX>;

fn sharePartials(tx: u32, ty: u32, values: ptr<function, array<f32, RQ>>) {
  @unroll for (var i = 0u; i < RQ; i++) { partials[(ty + TY * i) * NX + tx] = (*values)[i]; }
  workgroupBarrier();
}

fn rowMax(tx: u32, ty: u32, values: ptr<function, array<f32, RQ>>) {
  sharePartials(tx, ty, values);
  @unroll for (var i = 0u; i < RQ; i++) {
    var most = partials[(ty + TY * i) * NX];
    for (var x = 1u; x < NX; x++) { most = max(most, partials[(ty + TY * i) * NX + x]); }
    (*values)[i] = most;
  }
}

fn rowSum(tx: u32, ty: u32, values: ptr<function, array<f32, RQ>>) {
  sharePartials(tx, ty, values);
  @unroll for (var i = 0u; i < RQ; i++) {
    var sum = 0.0;
    for (var x = 0u; x < NX; x++) { sum += partials[(ty + TY * i) * NX + x]; }
    (*values)[i] = sum;
  }
}
