// Putting text on the clipboard, also where the modern way is missing (plain http to another host).

export async function copyText(text: string): Promise<boolean> {
  try {
    // Typed as always there; it needs HTTPS or localhost.
    const clipboard = navigator.clipboard as Clipboard | undefined;
    if (clipboard) {
      await clipboard.writeText(text);
      return true;
    }
  } catch {
    // Not allowed just now; the old way may be.
  }
  const had = document.activeElement;
  const area = document.createElement('textarea');
  area.value = text;
  area.setAttribute('readonly', '');
  area.style.cssText = 'position:fixed;top:0;left:-9999px';
  document.body.append(area);
  area.select();
  try {
    return document.execCommand('copy');
  } catch {
    return false;
  } finally {
    area.remove();
    if (had instanceof HTMLElement) had.focus();
  }
}

/** The clipboard's text, or undefined when the browser won't say. */
export async function readText(): Promise<string | undefined> {
  try {
    return await (navigator.clipboard as Clipboard | undefined)?.readText();
  } catch {
    return undefined;
  }
}
