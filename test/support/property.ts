/**
 * How many runs a property test makes, and from which seed. fast-check prints the seed of a failure; run the
 * test again with VDUSE_SEED set to it. VDUSE_TEST_SCALE multiplies the runs for a longer search.
 */
function integerFromEnvironment(name: string): number | undefined {
  const text = process.env[name];
  if (text === undefined || text === '') {
    return undefined;
  }
  const value = Number(text);
  if (!Number.isInteger(value)) {
    throw new Error(`${name}=${text}: must be an integer`);
  }
  return value;
}

const seed = integerFromEnvironment('VDUSE_SEED');
const scale = integerFromEnvironment('VDUSE_TEST_SCALE') ?? 1;

/** Parameters of fc.assert. */
export function propertyRuns(count: number): { numRuns: number; seed?: number } {
  const numRuns = Math.max(1, Math.round(count * scale));
  return seed === undefined ? { numRuns } : { numRuns, seed };
}
