/** The driver in software, against the suite that Linux's own runs through in the lab. */
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { runCase } from '../conformance/conformance-case.js';
import { differences } from '../conformance/differences.js';
import { softwareBench } from '../conformance/software-bench.js';
import { conformanceCases } from '../conformance/suite.js';
import { openFdCount } from '../support/resources.js';

for (const apiVersion of [0, 1] as const) {
  describe(`API ${apiVersion}`, () => {
    const bench = softwareBench(apiVersion);
    const looked = new Set<string>();
    const before = openFdCount();

    for (const testCase of conformanceCases) {
      test(testCase.name, async () => {
        const result = await runCase(bench, testCase);
        for (const key of result.looked) {
          looked.add(key);
        }
        assert.deepEqual(result.failures, []);
      });
    }

    after(() => {
      assert.equal(openFdCount(), before, 'descriptors are left open');
      const unused = differences.filter(
        ({ key, platforms }) => platforms.includes(bench.platform) && !looked.has(key),
      );
      assert.deepEqual(unused, [], 'differences that no case looks at');
    });
  });
}
