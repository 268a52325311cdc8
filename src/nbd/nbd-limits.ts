/** The bounds of an NBD server. Whatever a client says or leaves unsaid ends at one of these. */
export const nbdLimits = {
  /** "Conventions": no string is longer, export names among them. */
  stringBytesMax: 4096,
  /** The payload of one request that every server takes ("Size constraints"). A longer one ends the connection. */
  payloadBytesMax: 32 << 20,
  /** "Size constraints": a minimum block size is no larger. */
  minimumBlockSizeMax: 65536,
  /** Data of one option that is read. What is longer is skipped and refused. */
  optionBytesMax: 64 << 10,
  /** A longer option is not even skipped. */
  optionBytesSkippedMax: 16 << 20,
  /** Options of one client, before it chooses an export. */
  optionsMax: 512,
  /** Options of one client before TLS, where it is required. */
  plainOptionsMax: 32,
  /** Bytes of answers to options that wait to be read by the client, before more options are looked at. */
  optionReplyBytesMax: 256 << 10,
  /** Replies that a client has not read, bytes, before further requests of it are looked at. */
  unreadReplyBytesMax: 4 << 20,
  /** Bytes of a client that are received at once, but for a payload that is received in place. */
  receivedBytesMax: 128 << 10,
  /** Extents of one answer to NBD_CMD_BLOCK_STATUS. */
  extentsMax: 1 << 14,
  /** Bytes of the text that goes with an error. */
  errorTextBytesMax: 256,
} as const;

/** What one client may hold, and for how long. Each has a default; a server may set others. */
export interface NbdClientLimits {
  /** Clients at once. One more takes the place of the one that has been negotiating longest, if there is one. */
  readonly connectionsMax: number;
  /** Requests of one client that are under way. Further ones wait in its socket. */
  readonly requestsMax: number;
  /**
   * Bytes of payload that one client's requests and unread replies hold. One request is always let through, however
   * long.
   */
  readonly requestBytesMax: number;
  /** From the connection to the choice of an export, TLS included. */
  readonly handshakeTimeoutMs: number;
  /** Half a request and then nothing, or replies that the client does not read. An idle client may stay for ever. */
  readonly stallTimeoutMs: number;
  /** How long close() waits for requests that are under way. */
  readonly closeTimeoutMs: number;
}

export const defaultClientLimits: NbdClientLimits = {
  connectionsMax: 100,
  requestsMax: 256,
  requestBytesMax: 64 << 20,
  handshakeTimeoutMs: 10_000,
  stallTimeoutMs: 60_000,
  closeTimeoutMs: 10_000,
};
