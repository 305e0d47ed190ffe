// Fetches what a click on an image will need, while the person still chooses.
let done = false;

export function preloadTerminal(): void {
  if (done) return;
  done = true;
  void import('../screens/Workspace.svelte').catch(() => (done = false));
  void import('./term/Terminal.svelte').catch(() => (done = false));
  void document.fonts.load('14px JetBrains').catch(() => undefined);
}
