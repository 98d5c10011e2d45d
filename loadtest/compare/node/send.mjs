// web-push for Node with a keep-alive agent.
//
// node send.mjs FOLDER WORK, where FOLDER has web-push in its node_modules, and WORK is a file that compare.py writes

import { once } from 'node:events';
import { createReadStream, readFileSync } from 'node:fs';
import https from 'node:https';
import { createRequire } from 'node:module';
import readline from 'node:readline';

const [folder, file] = process.argv.slice(2);
const webpush = createRequire(`${folder}/`)('web-push');
const work = JSON.parse(readFileSync(file, 'utf8'));
const vapidDetails = { subject: work.subject, publicKey: work.public_key, privateKey: work.private_key };
const agent = new https.Agent({ keepAlive: true, maxSockets: work.in_flight, ca: readFileSync(work.ca) });

// Left to itself web-push signs every message. A token may be used for a day (RFC 8292); this one is used for half of it.
const lifetime = 12 * 60 * 60 * 1000;
const tokens = new Map();

function authorization(origin) {
  let token = tokens.get(origin);
  if (token === undefined || Date.now() - token.at > lifetime) {
    const { subject, publicKey, privateKey } = vapidDetails;
    const { Authorization } = webpush.getVapidHeaders(origin, subject, publicKey, privateKey, 'aes128gcm');
    token = { at: Date.now(), headers: { Authorization } };
    tokens.set(origin, token);
  }
  return token.headers;
}

function options(endpoint) {
  const common = { TTL: work.ttl, urgency: 'normal', agent };
  if (work.sign_each) return { ...common, vapidDetails };
  return { ...common, headers: authorization(new URL(endpoint).origin) };
}

// Sends the lines of a file, so many of them at a time.
async function send(path) {
  const lines = readline.createInterface({ input: createReadStream(path) })[Symbol.asyncIterator]();
  const one = async () => {
    for (let next = await lines.next(); !next.done; next = await lines.next()) {
      const { subscription, payload } = JSON.parse(next.value);
      await webpush.sendNotification(subscription, payload, options(subscription.endpoint));
    }
  };
  await Promise.all(Array.from({ length: work.in_flight }, one));
}

async function told(word) {
  console.log(word);
  await once(process.stdin, 'data');
}

await send(work.warm_up);
await told('ready');
await send(work.lines);
await told('done');
process.exit();
