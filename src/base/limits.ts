/**
 * Every bound of the project in one place. Loops over what guests, clients and images supply end at one of
 * these, whatever the other side says.
 */
export const limits = {
  /** Virtio 2.7: the largest queue size of a split virtqueue. */
  queueSizeMax: 32768,
  /** The smallest queue whose chains can hold a request's header, one data segment and the status. */
  queueSizeMin: 4,
  /** Queues of one device. VDUSE itself has no bound; virtio-blk's num_queues is 16 bits wide. */
  queueCountMax: 1024,
  /** Descriptors of one chain when the queue is smaller than that (indirect tables may be longer). */
  chainLengthMin: 1024,
  /** Data segments of one request: preadv and pwritev take no more (IOV_MAX). */
  requestSegmentsMax: 1024,
  /** Bytes of one request's payload. A read or write of Linux moves at most 2 GiB less a page. */
  requestBytesMax: 0x7fff_f000,
  /** Segments of one DISCARD or WRITE_ZEROES request. */
  rangeSegmentsMax: 32,
  /** Memory regions of one device's map. */
  memoryRegionsMax: 4096,
  /** VDUSE: bytes of a device name without its terminator. */
  deviceNameBytesMax: 255,
  /** VDUSE: bytes of a device's configuration space (the kernel takes one page). */
  configSpaceBytesMax: 4096,
  /** Bytes of a virtio-blk serial number (virtio 5.2.6: VIRTIO_BLK_ID_BYTES). */
  serialBytesMax: 20,
  /** Times a request is submitted again after a short transfer or EAGAIN, before it is an error. */
  resubmissionsMax: 64,
  /** Chains taken from a queue in one go, so that queues which share a thread take turns. */
  batchMax: 128,
  /** The longest look for work before a sleep, microseconds: beyond it a sleep costs next to nothing. */
  pollUsMax: 1000,
  /** The longest sleep of a queue thread. Bounds the damage of a lost kick and lets the process end. */
  sleepMsMax: 1000,
  /** How long a change of the block graph waits for requests in flight before it is given up, and nothing is changed. */
  drainMsMax: 30_000,
  /** Bytes of one QMP message. */
  qmpMessageBytesMax: 16 << 20,
  /** Nesting of one JSON value from outside. */
  jsonDepthMax: 64,
} as const;
