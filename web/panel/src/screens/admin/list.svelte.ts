// A list the gateway keeps: fetched once, with its trouble beside it.
import { api } from '../../lib/app.svelte.ts';

export class Listing<T> {
  items = $state.raw<T[]>();
  trouble = $state<unknown>();

  constructor(private readonly path: string) {
    void this.fetch();
  }

  fetch = async (): Promise<void> => {
    try {
      this.items = (await api.get<T[] | null>(this.path)) ?? [];
      this.trouble = undefined;
    } catch (error) {
      this.trouble = error;
    }
  };
}
