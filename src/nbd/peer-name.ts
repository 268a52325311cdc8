/** The distinguished name of a client's certificate, written as GnuTLS writes it and QEMU's access lists expect it. */
import type { TLSSocket } from 'node:tls';

/** Where OpenSSL's short names of attributes are not GnuTLS's. */
const gnutlsNames: ReadonlyMap<string, string> = new Map([
  ['emailAddress', 'EMAIL'],
  ['GN', 'givenName'],
  ['SN', 'surName'],
]);

/** Such as `C=GB,O=Example Org,CN=laptop.example.com`; undefined where the client showed no certificate. */
export function peerName(secured: TLSSocket): string | undefined {
  const subject = secured.getPeerX509Certificate()?.subject;
  return subject === undefined ? undefined : distinguishedName(subject);
}

/**
 * `subject` is Node's: a line for each relative name, and several attributes of one joined by ` + `. Values are
 * escaped already (RFC 4514, 2.4), line ends and plus signs among them.
 */
export function distinguishedName(subject: string): string {
  return subject
    .split('\n')
    .map((line) => line.split(' + ').map(attribute).join('+'))
    .join(',');
}

function attribute(text: string): string {
  const end = text.indexOf('=');
  const name = text.slice(0, end);
  return `${gnutlsNames.get(name) ?? name}${text.slice(end)}`;
}
