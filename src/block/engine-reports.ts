/**
 * What engines tell the node that they are of, from whatever thread they run on: of outages, not of requests. A queue
 * thread has no event loop that runs and no log, so what it reports goes the way of its other messages.
 */

type Send = (node: number, report: object) => void;

const listeners = new Map<number, (report: object) => void>();
let send: Send = deliverReport;

/** Tells the node of that number. Nobody listens any more: nobody is told. */
export function reportToNode(node: number, report: object): void {
  send(node, report);
}

/** On a queue thread, before it has engines: how reports get to the main thread, which delivers them. */
export function setReportSender(sender: Send): void {
  send = sender;
}

/** On the main thread. */
export function deliverReport(node: number, report: object): void {
  listeners.get(node)?.(report);
}

/** On the main thread: hears what engines of the node report, plain data. Returns what ends it. */
export function listenToEngines(node: number, listener: (report: object) => void): () => void {
  listeners.set(node, listener);
  return () => listeners.delete(node);
}
