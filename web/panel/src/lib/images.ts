// The catalogue as a person sees it: in their language, and found by what they type.
import type { Image } from './api/types.ts';
import type { Lang } from './i18n/dict.ts';

export function describe(image: Image, lang: Lang): string {
  return (lang === 'zh' && image.descriptionZh) || image.description;
}

export function imageTitle(image: Image, lang: Lang): string {
  return (lang === 'zh' && image.titleZh) || image.title || image.name;
}

/** Images that match every word of `query`, those whose name begins with it first. */
export function search(images: readonly Image[], query: string): Image[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return [...images];
  const rank = (image: Image): number => {
    const names = [image.title, image.titleZh ?? '', image.name].map((name) => name.toLowerCase());
    const all = [...names, image.description.toLowerCase(), image.descriptionZh ?? ''].join('\n');
    if (!words.every((word) => all.includes(word))) return -1;
    if (names.some((name) => name.startsWith(words[0]!))) return 0;
    return names.some((name) => name.includes(words[0]!)) ? 1 : 2;
  };
  return images
    .map((image) => ({ image, rank: rank(image) }))
    .filter((entry) => entry.rank >= 0)
    .sort((a, b) => a.rank - b.rank)
    .map((entry) => entry.image);
}
