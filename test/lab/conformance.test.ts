/** The conformance suite on Linux's own VDUSE: what the driver in software is measured by. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { KERNEL_CHANNELS } from '../../lab/kernel.js';
import { runInLab } from '../../lab/run.js';
import type { CaseResult } from '../conformance/conformance-case.js';
import { resultMark } from '../conformance/result-line.js';
import { conformanceCases } from '../conformance/suite.js';

const main = fileURLToPath(new URL('../conformance/linux-main.js', import.meta.url));

for (const kernel of KERNEL_CHANNELS) {
  test(`Debian ${kernel}: VDUSE ABI`, { timeout: 1_500_000 }, async (context) => {
    const command = `modprobe -a vduse virtio_vdpa virtio_blk vhost_vdpa && exec node --enable-source-maps ${main}`;
    const { exitStatus, output, consoleTail } = await runInLab({
      command,
      kernel,
      smp: 2,
      timeoutMs: 1_200_000,
    });
    const lines = output.split('\n').filter((line) => line.startsWith(resultMark));
    const results = lines.map((line) => JSON.parse(line.slice(resultMark.length)) as CaseResult);
    const shown = `${output}\nconsole:\n${consoleTail}`;
    for (const { name } of conformanceCases) {
      await context.test(name, (check) => {
        const result = results.find((candidate) => candidate.name === name);
        assert(result !== undefined, `this case did not come to its end\n${shown}`);
        check.diagnostic(
          `${(result.milliseconds / 1000).toFixed(1)} s, ${result.looked.length} expectations`,
        );
        assert.deepEqual(result.failures, []);
      });
    }
    assert.equal(exitStatus, 0, shown);
  });
}
