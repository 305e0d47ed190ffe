export function mockApi(): import('vite').Plugin { return { name: 'learnos:mock' }; }
