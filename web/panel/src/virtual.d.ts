declare module 'virtual:brands' {
  const marks: Record<string, { path: string; hex: string }>;
  export default marks;
}
declare module 'virtual:brands/more' {
  const marks: Record<string, { path: string; hex: string }>;
  export default marks;
}

interface Window {
  /** What end-to-end tests read: the text of the terminal in front, scrollback included. */
  __learnosTerm?: { text(): string };
}
