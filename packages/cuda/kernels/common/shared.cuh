// The dynamic shared memory of a CTA, as long as its launch says.
#pragma once

extern __shared__ __align__(1024) unsigned char sharedMemory[];
