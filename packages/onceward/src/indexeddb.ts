/** `onceward/indexeddb`: keys in IndexedDB, for workers, which have no web storage. */

import type { KeyStorage } from './storage.js'

const STORE = 'keys'

/** Keeps keys in a database of this name, shared by the pages and workers of an origin. */
export function indexedDBStorage(database = 'onceward'): KeyStorage {
  let opened: Promise<IDBDatabase> | undefined
  const open = () =>
    (opened ??= new Promise<IDBDatabase>((resolve, reject) => {
      const request = indexedDB.open(database, 1)
      request.onupgradeneeded = () => void request.result.createObjectStore(STORE)
      request.onerror = () => reject(request.error ?? new Error('IndexedDB did not open'))
      request.onblocked = () => reject(new Error('another version of the page holds the database'))
      request.onsuccess = () => {
        // Another page that deletes or upgrades it must not wait for us: it is opened again at the next use.
        request.result.onversionchange = request.result.onclose = () => {
          request.result.close()
          opened = undefined
        }
        resolve(request.result)
      }
    }).catch((error: unknown) => {
      opened = undefined
      throw error
    }))
  const run = async <T>(mode: IDBTransactionMode, ask: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> => {
    // Strict: on the disk before the request that has the key is sent, as far as the browser can.
    const transaction = (await open()).transaction(STORE, mode, { durability: 'strict' })
    const request = ask(transaction.objectStore(STORE))
    return new Promise<T>((resolve, reject) => {
      transaction.oncomplete = () => resolve(request.result)
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? new Error('IndexedDB failed'))
    })
  }
  return {
    get: (name) => run<string | undefined>('readonly', (store) => store.get(name) as IDBRequest<string | undefined>),
    set: async (name, text) => void (await run('readwrite', (store) => store.put(text, name))),
    remove: async (name) => void (await run('readwrite', (store) => store.delete(name))),
    names: async () => (await run('readonly', (store) => store.getAllKeys())).map(String),
  }
}
