// Opens the bodies of a file of cases with http_ece from npm. Prints how many were as expected; ends with 1 at the first that is not.
//
// node receive.mjs FOLDER CASES, where FOLDER has http_ece in its node_modules

import { createECDH } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const [folder, file] = process.argv.slice(2);
const ece = createRequire(`${folder}/`)('http_ece');
const bytes = (text) => Buffer.from(text, 'base64url');

// The parameter `name` of a header such as `dh=...;p256ecdsa=...`.
function parameter(header, name) {
  for (const part of header.split(/[;,]/)) {
    const [key, value] = part.trim().split('=', 2);
    if (key === name) return value;
  }
  throw new Error(`no ${name} in ${header}`);
}

function open(test) {
  const privateKey = createECDH('prime256v1');
  privateKey.setPrivateKey(bytes(test.private_key));
  const params = { version: test.encoding, privateKey, authSecret: test.auth };
  if (test.encoding === 'aesgcm') {
    params.salt = parameter(test.headers.encryption, 'salt');
    params.dh = parameter(test.headers.crypto_key, 'dh');
  }
  return ece.decrypt(bytes(test.body), params);
}

const { cases } = JSON.parse(readFileSync(file, 'utf8'));
for (const test of cases) {
  let opened = null;
  try {
    opened = open(test).toString('base64url');
  } catch (error) {
    if (test.expected !== null) throw new Error(`${test.name}: ${error.message}`, { cause: error });
  }
  if (opened !== test.expected) {
    console.error(`${test.name}: opened to something else`);
    process.exit(1);
  }
}
console.log(`${cases.length} as expected`);
