/** The conformance suite of the VDUSE ABI: every case, for every driver. */
import type { ConformanceCase } from './conformance-case.js';
import { controlCases } from './control-cases.js';
import { memoryCases } from './memory-cases.js';
import { messageCases } from './message-cases.js';
import { queueCases } from './queue-cases.js';

export const conformanceCases: readonly ConformanceCase[] = [
  ...controlCases,
  ...queueCases,
  ...memoryCases,
  ...messageCases,
];
