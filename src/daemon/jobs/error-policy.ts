/** What a job does about errors of its nodes (QEMU's BlockdevOnError). */
import type { CopyError } from '../../block/copier.js';
import { Errno } from '../../native/errno.js';

export type OnError = 'report' | 'ignore' | 'enospc' | 'stop' | 'auto';

/** What comes of an error: the job fails, tries again, or stops until it is resumed. */
export type ErrorAction = 'report' | 'ignore' | 'stop';

export interface ErrorPolicy {
  /** `report`, the default: the job fails. */
  readonly onSourceError?: OnError;
  readonly onTargetError?: OnError;
}

export function decide(policy: ErrorPolicy, { operation, errno }: CopyError): ErrorAction {
  const wanted = (operation === 'read' ? policy.onSourceError : policy.onTargetError) ?? 'report';
  switch (wanted) {
    case 'enospc':
    case 'auto':
      return errno === Errno.ENOSPC ? 'stop' : 'report';
    default:
      return wanted;
  }
}
