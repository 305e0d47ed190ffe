import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig, type Plugin } from 'vite';
import { brandIcons } from './build/brand-icons.ts';
import { brotli } from './build/compress.ts';

// LEARNOS_PANEL_API=http://127.0.0.1:8011 points `npm run dev` at a real web server;
// without it the dev server answers the API itself, from mock/ (never part of a build).
const api = process.env.LEARNOS_PANEL_API;

export default defineConfig(async ({ command, isPreview }) => {
  const plugins: Plugin[] = [...(svelte() as Plugin[]), brandIcons(), brotli()];
  const serving = (command === 'serve' || isPreview) && !process.env.VITEST;
  if (serving && !api) {
    const { mockApi } = await import('./mock/plugin.ts');
    plugins.push(mockApi());
  }
  const proxy = api ? { '/api': { target: api, ws: true }, '/healthz': api } : undefined;
  return {
    plugins,
    server: { proxy, fs: { allow: ['.', '../words'] } },
    preview: { proxy },
    build: {
      outDir: '../dist',
      emptyOutDir: true, // public/.gitkeep is copied back in
      assetsInlineLimit: 0, // no data: URLs, so the page can live under a strict CSP
      sourcemap: false,
      chunkSizeWarningLimit: 600, // xterm and its addons are one lazy chunk of 523 kB
    },
    test: { include: ['test/**/*.test.ts'], environment: 'node' },
  };
});
