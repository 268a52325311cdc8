import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatCpuMask, parseCpuList } from '../../src/base/cpu-list.js';

test('lists of processors are read as Linux writes them', () => {
  assert.deepEqual(parseCpuList('0'), [0]);
  assert.deepEqual(parseCpuList('0-3,8'), [0, 1, 2, 3, 8]);
  assert.deepEqual(parseCpuList('3, 1-2,2'), [3, 1, 2]);
  for (const wrong of ['', '-1', '1-', '3-1', 'a', '1;2', '0-99999', '8192']) {
    assert.throws(
      () => parseCpuList(wrong),
      { code: 'INVALID_ARGUMENT', message: /no list of processors/ },
      wrong,
    );
  }
});

test('masks of processors are written as Linux reads them', () => {
  assert.equal(formatCpuMask([0]), '00000001');
  assert.equal(formatCpuMask([0, 1, 31]), '80000003');
  assert.equal(formatCpuMask([33, 0]), '00000002,00000001');
});
