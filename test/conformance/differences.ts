/**
 * Where drivers answer otherwise than Linux 7.2, which the suite expects: an older kernel, or the driver in
 * software on purpose. Each entry is asserted: a difference that goes away is a failure, too.
 */
import type { Platform } from './bench.js';
import type { Finding } from './conformance-case.js';

export interface Difference {
  /** The case and what it looked at. */
  readonly key: string;
  readonly platforms: readonly Platform[];
  readonly found: Finding;
  readonly reason: string;
}

export const differences: readonly Difference[] = [];
