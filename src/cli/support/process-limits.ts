import { readFileSync } from 'node:fs';

/** RLIMIT_MEMLOCK in bytes, the soft one; undefined where there is no limit. */
export function memoryLockLimit(limits = readFileSync('/proc/self/limits', 'utf8')): number | undefined {
  const soft = /^Max locked memory\s+(\S+)/m.exec(limits)?.[1];
  return soft === undefined || soft === 'unlimited' ? undefined : Number(soft);
}
