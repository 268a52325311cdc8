/** Which processors a thread may run on (sched_setaffinity(2)). */
import { bindLibc, check } from './ffi.js';

const setAffinityCall = bindLibc<(pid: number, bytes: number, mask: Uint8Array) => number>(
  'sched_setaffinity',
  'int',
  ['int', 'size_t', 'void *'],
);

/** The kernel reads whole words. */
const maskBytes = 1024;

/** Keeps the calling thread to these processors. Throws SYSTEM_CALL; EINVAL where none of them is there. */
export function setThreadAffinity(cpus: readonly number[]): void {
  const mask = new Uint8Array(new ArrayBuffer(maskBytes));
  for (const cpu of cpus) {
    mask[cpu >> 3] |= 1 << (cpu & 7);
  }
  check(setAffinityCall(0, maskBytes, mask), 'sched_setaffinity', `to processors ${cpus.join(',')}`);
}
