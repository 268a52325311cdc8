/** What the software driver can tell of itself while it works: for a reader, and for tests. */
import type { IotlbMap } from './iotlb.js';

export type VduseTraceEvent =
  /** The driver sends a message (struct vduse_dev_request). */
  | { readonly kind: 'message'; readonly bytes: Uint8Array }
  /** The process answers one (struct vduse_dev_response). */
  | { readonly kind: 'answer'; readonly bytes: Uint8Array }
  | { readonly kind: 'map'; readonly map: IotlbMap }
  | { readonly kind: 'unmap'; readonly map: IotlbMap };

export type VduseTrace = (event: VduseTraceEvent) => void;
