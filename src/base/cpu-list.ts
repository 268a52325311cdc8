/** Sets of processors the way Linux writes them, as lists: "0-3,8". */
import { VduseError } from './errors.js';

/** CONFIG_NR_CPUS of the largest kernels. */
const cpuMax = 8191;

/** The processors of a list, each once, in the order given. Throws INVALID_ARGUMENT. */
export function parseCpuList(text: string): number[] {
  const cpus = new Set<number>();
  for (const part of text.split(',')) {
    const range = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part.trim());
    const first = Number(range?.[1]);
    const last = Number(range?.[2] ?? first);
    if (range === null || last < first || last > cpuMax) {
      throw new VduseError('INVALID_ARGUMENT', `'${text}' is no list of processors`, {
        hint: 'Write it as 0-3,8; `lscpu` shows the numbers.',
      });
    }
    for (let cpu = first; cpu <= last; cpu++) {
      cpus.add(cpu);
    }
  }
  return [...cpus];
}

/** The same as a mask, the way Linux writes those: words of 32 processors in hexadecimal, the last ones first. */
export function formatCpuMask(cpus: readonly number[]): string {
  const words = new Uint32Array((Math.max(0, ...cpus) >> 5) + 1);
  for (const cpu of cpus) {
    words[cpu >> 5] |= 1 << (cpu & 31);
  }
  return [...words]
    .reverse()
    .map((word) => word.toString(16).padStart(8, '0'))
    .join(',');
}
