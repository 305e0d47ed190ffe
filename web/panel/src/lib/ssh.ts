// The ssh command for this server, ready to paste.

/**
 * `sshAddr` is where the SSH door listens ("host:port", the host possibly empty, a wildcard or loopback);
 * `here` the host name this page came from, which is the better name then. Undefined: there is no door.
 */
export function sshCommand(sshAddr: string, here: string, user: string, image?: string): string | undefined {
  const colon = sshAddr.lastIndexOf(':');
  const port = Number(sshAddr.slice(colon + 1));
  if (colon < 0 || !Number.isInteger(port) || port < 1) return undefined;
  const listens = sshAddr.slice(0, colon).replace(/^\[|\]$/g, '');
  const anywhere = listens === '' || listens === '0.0.0.0' || listens === '::' || listens === '::1' || listens === 'localhost' || listens.startsWith('127.');
  const host = (anywhere ? here : listens).replace(/^\[|\]$/g, '');
  return `ssh${port === 22 ? '' : ` -p ${port}`} ${user}${image ? `+${image}` : ''}@${host}`;
}
