// Rank pictures by a Chinese query with a model that `wukong model export MODEL FOLDER --to transformers.js` wrote.
//
//     node search.mjs FOLDER QUERY PICTURE...
//
// `npm install @huggingface/transformers` makes the package importable beside this file.
import path from "node:path";
import {
  AutoProcessor,
  AutoTokenizer,
  CLIPTextModelWithProjection,
  CLIPVisionModelWithProjection,
  env,
  load_image,
} from "@huggingface/transformers";

const [folder, query, ...pictures] = process.argv.slice(2);
env.allowRemoteModels = false; // the folder is on this disk
env.localModelPath = path.dirname(path.resolve(folder));
const name = path.basename(folder);
const dtype = process.env.DTYPE ?? "fp32"; // "q8" for the files in int8, which browsers take unless told otherwise

const tokenizer = await AutoTokenizer.from_pretrained(name);
const processor = await AutoProcessor.from_pretrained(name);
const captions = await CLIPTextModelWithProjection.from_pretrained(name, { dtype });
const images = await CLIPVisionModelWithProjection.from_pretrained(name, { dtype });

const { text_embeds } = await captions(tokenizer([query], { padding: true, truncation: true }));
const found = [];
for (const picture of pictures) {
  const { image_embeds } = await images(await processor(await load_image(picture)));
  const similarity = image_embeds.data.reduce((sum, value, place) => sum + value * text_embeds.data[place], 0);
  found.push({ picture, similarity });
}
found.sort((one, other) => other.similarity - one.similarity);
for (const { picture, similarity } of found) console.log(similarity.toFixed(4), picture);
