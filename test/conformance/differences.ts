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

function differ(
  difference: Omit<Difference, 'key'> & { readonly keys: readonly string[] },
): readonly Difference[] {
  const { keys, ...rest } = difference;
  return keys.map((key) => ({ key, ...rest }));
}

export const differences: readonly Difference[] = [
  ...differ({
    keys: ['user memory: more than may be locked'],
    platforms: ['software-0', 'software-1'],
    found: 0,
    reason: 'Linux pins the pages; the driver in software touches them like any program, and locks nothing',
  }),
  ...differ({
    keys: [
      'API versions: newest',
      'API versions: after that',
      'API versions: after a refusal',
      'API versions: another opener has its own',
    ],
    platforms: ['linux-6.12', 'software-0'],
    found: 0,
    reason: 'API 1 came with Linux 7.0',
  }),
  ...differ({
    keys: ['API versions: set 1'],
    platforms: ['linux-6.12', 'software-0'],
    found: 'EINVAL',
    reason: 'API 1 came with Linux 7.0',
  }),
  ...differ({
    keys: [
      'create, API 0: vq_align 0',
      'create, API 0: vq_align 1',
      'create, API 0: vq_align 2',
      'create, API 0: vq_align 3',
      'create, API 0: vq_align 3000',
    ],
    platforms: ['linux-6.12'],
    found: 0,
    reason:
      '6.12 checks only that the alignment is at most a page; the driver in software has the newest rule for all versions',
  }),
  ...differ({
    keys: ['create, API 0: device type 26'],
    platforms: ['linux-6.12'],
    found: 'EINVAL',
    reason: 'file systems came with 6.15',
  }),
  ...differ({
    keys: ['IOTLB: reserved bytes', 'IOTLB_GET_FD2, API 0: info of no such address space'],
    platforms: ['linux-6.12', 'software-0', 'software-1'],
    found: 'EINVAL',
    reason: '7.2 says EFAULT for what older kernels call invalid; nobody can want that',
  }),
  ...differ({
    keys: ['IOTLB_GET_FD2, API 1: info of no such address space'],
    platforms: ['software-1'],
    found: 'EINVAL',
    reason: '7.2 says EFAULT for what older kernels call invalid; nobody can want that',
  }),
  ...differ({
    keys: [
      'refused ACKNOWLEDGE: attach',
      'refused FEATURES_OK: attach',
      'refused DRIVER_OK: attach',
      'message timeout: attach',
    ],
    platforms: ['software-0', 'software-1'],
    found: 'ATTACH_FAILED',
    reason:
      "Linux's bus adds a device whose probe failed, and the log tells; in software, who adds it learns it and it is off again",
  }),
  ...differ({
    keys: [
      'refused ACKNOWLEDGE: on the bus',
      'refused FEATURES_OK: on the bus',
      'refused DRIVER_OK: on the bus',
      'message timeout: on the bus',
    ],
    platforms: ['software-0', 'software-1'],
    found: false,
    reason:
      "Linux's bus adds a device whose probe failed, and the log tells; in software, who adds it learns it and it is off again",
  }),
  ...differ({
    keys: ['refused ACKNOWLEDGE: messages'],
    platforms: ['software-0', 'software-1'],
    found: '0 1 0',
    reason:
      'the driver in software gives up at the first refusal, and resets the device so that its queues can be freed',
  }),
  ...differ({
    keys: ['refused FEATURES_OK: messages'],
    platforms: ['software-0', 'software-1'],
    found: '0 1 3 b 0',
    reason:
      'the driver in software gives up at the first refusal, and resets the device so that its queues can be freed',
  }),
  ...differ({
    keys: ['refused DRIVER_OK: messages'],
    platforms: ['software-0', 'software-1'],
    found: '0 1 3 b f 0',
    reason:
      'the driver in software gives up at the first refusal, and resets the device so that its queues can be freed',
  }),
];
